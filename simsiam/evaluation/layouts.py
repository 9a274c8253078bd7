"""Where other programs store the weights of their backbones."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """Where a program stores the weights of its backbone."""

    prefix: str  # how the names of the backbone's weights begin
    source: str  # which programs do so
    # Prefixes of a second backbone, whose weights are a moving average of those of the first.
    average_prefixes: tuple[str, ...] = ()


LAYOUTS = (
    Layout("", "a state dict, as of torchvision or timm"),
    Layout("encoder_q.", "as MoCo saves it", ("encoder_k.",)),
    Layout("base_encoder.", "as MoCo v3 saves it", ("momentum_encoder.",)),
    Layout("encoder.", "as facebookresearch/simsiam saves it"),
    Layout(
        "backbone.",
        "as lightly or solo-learn saves it",
        ("backbone_momentum.", "momentum_backbone."),
    ),
)
