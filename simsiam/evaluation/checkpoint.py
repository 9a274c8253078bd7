"""Loading checkpoints: strictly, and without running anything that a file contains."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, Field, FiniteFloat, ValidationError
from torch import Tensor, nn

from models.heads import OWN_BACKBONE, build_networks
from models.resnet import BACKBONES, STEMS, ResNet
from simsiam.config.options import NetworkOptions
from simsiam.evaluation.features import extract_features
from utils.checkpoint_io import read_checkpoint
from utils.console import track_progress
from utils.errors import UserError, require
from utils.run_dir import RunDirectory
from utils.weights import BACKBONE, read_weights

if (
    TYPE_CHECKING
):  # at run time, a network is loaded without Lightning, which takes seconds to import
    from simsiam.module import SimSiam

LARGEST_SIZE = 2**14  # of channels, dimensions and pixels: no file makes us allocate more
Size = Annotated[int, Field(ge=1, le=LARGEST_SIZE)]
Deviation = Annotated[FiniteFloat, Field(gt=0)]
OfRGB = Field(min_length=3, max_length=3)


class BackboneMetadata(BaseModel, strict=True, extra="allow"):
    """What a file says of its backbone: how to build it, how to prepare its images, and where it is from."""

    backbone: Annotated[str, Field(pattern=f"^({'|'.join(BACKBONES)})$")]
    width: Size
    stem: Annotated[str, Field(pattern=f"^({'|'.join(STEMS)})$")] = (
        "cifar"  # as of files that do not say it
    )
    image_size: (
        Size | None
    )  # None, of mean and std too: trained with a loader of one's own, which does not say
    mean: Annotated[Sequence[FiniteFloat], OfRGB] | None
    std: Annotated[Sequence[Deviation], OfRGB] | None
    classes: Sequence[str] = ()
    settings: dict[str, Any] = {}  # of the run; whoever uses one checks it
    row: dict[str, int | float | None] = {}  # the last of metrics.jsonl


ARCHITECTURE = ("backbone", "width", "stem")
HEADS = ("out_dim", "h_dim", "proj_layers", "proj_hidden", "heads_bn", "predictor")
FACTS = (*ARCHITECTURE, "image_size", "mean", "std")  # these are hyper-parameters of SimSiam
TRAINING = (
    "stop_grad",
    "fixed_predictor",
    "symmetric",
    "constant_predictor_lr",
    "learning_rate",
    "warmup_epochs",
)
TRAINING += ("momentum", "weight_decay", "classes", "predictor_lr_scale")
PROVENANCE = (
    "classes",
    "settings",
    "versions",
    "commit",
    "row",
)  # these lie beside them in a run's checkpoint


class LoadedCheckpoint(NamedTuple):
    """Networks in eval mode, and what their file says of them."""

    file: Path
    backbone: ResNet  # (B, 3, S, S) -> (B, F), with .mean, .std and .image_size of its images
    projector: nn.Sequential | None  # (B, F) -> (B, d); None for a file of the backbone alone
    facts: BackboneMetadata

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (3,) of the training images, on the backbone's device."""
        device = next(self.backbone.parameters()).device
        return torch.tensor(self.backbone.mean, device=device), torch.tensor(
            self.backbone.std, device=device
        )

    def extract_features(
        self, chunks: Iterable[Tensor], n: int, what: str, unit: bool = True
    ) -> Tensor:
        """`extract_features` of `n` images that come in chunks (B, 3, C, C), with progress that names `what`."""
        chunks = track_progress(chunks, n, f"features of {what}")
        return extract_features(self.backbone, chunks, *self.statistics, unit, n)


def find_checkpoint(path: str | Path, whole: bool = False) -> Path:
    """The file meant by a file or a folder: of a run the backbone's own, or with `whole` the last checkpoint."""
    path = Path(path).expanduser()
    if not path.is_dir():
        require(path.exists(), f"{path}: no such file or folder")
        return path
    run = RunDirectory(path)
    states = [run.last, run.best, path / run.last.name]
    found = [
        file
        for file in ([*states, run.backbone] if whole else [run.backbone, *states])
        if file.exists()
    ]
    require(bool(found), f"{path}: no checkpoint in this folder")
    return found[0]


def load_backbone(path: str | Path) -> ResNet:
    """The backbone of a run folder, a `.ckpt` or a `.safetensors`, on the CPU, in eval mode: (B, 3, S, S) -> (B, F).

    The images that it expects are RGB on the scale of 0 to 1, minus `.mean`, over `.std`; both are attributes of it
    (3 floats each; ValueError if it was trained with a loader, which does not say them), as is `.image_size` (S of its
    training, in pixels). Raises ValueError for missing, damaged or foreign files, and for weights that do not fit to
    the last key.
    """
    return load_checkpoint(path, whole=False).backbone


def load_checkpoint(path: str | Path, whole: bool = True) -> LoadedCheckpoint:
    """Networks and facts of a file, on the CPU; arguments as of `find_checkpoint`, errors as of `load_backbone`."""
    file = find_checkpoint(path, whole)
    if file.suffix == ".safetensors":
        return load_backbone_file(file)
    content = read_checkpoint(file)
    if "subclass" in content:
        return load_backbone_of_subclass(file, content)
    networks, _, facts = load_all_networks(file, content)
    backbone, projector = networks["backbone"], networks["projector"].eval()
    assert isinstance(backbone, ResNet) and isinstance(projector, nn.Sequential)  # of their names
    return LoadedCheckpoint(file, attach_facts(backbone, facts), projector, facts)


def load_backbone_of_subclass(file: Path, content: dict[str, Any]) -> LoadedCheckpoint:
    """The backbone alone of a module that extends SimSiam, whose other parts only its own code knows."""
    facts = read_facts(file, content)
    backbone = build_backbone(facts)
    prefix = "backbone."
    weights = rename_compiled(content["state_dict"]).items()
    state = {str(key).removeprefix(prefix): x for key, x in weights if str(key).startswith(prefix)}
    load_strictly(backbone, state, file)
    return LoadedCheckpoint(file, backbone, None, facts)


def rename_compiled(state: dict[str, Any]) -> dict[str, Any]:
    """Return weights under the names that they have in a network without `torch.compile`."""
    renamed: dict[str, Any] = {}
    for name, weight in state.items():
        # `model.backbone = torch.compile(model.backbone)` wraps it in a module with this name.
        key = name.replace("_orig_mod.", "") if isinstance(name, str) else name
        renamed[key] = weight
    return renamed


def load_backbone_file(file: Path) -> LoadedCheckpoint:
    """A safetensors file of a backbone, whatever its suffix."""
    metadata, state = read_weights(file, BACKBONE)
    facts = validate_facts(metadata, file)
    backbone = build_backbone(facts)
    load_strictly(backbone, state, file)
    return LoadedCheckpoint(file, backbone, None, facts)


def read_facts(file: Path, content: dict[str, Any]) -> BackboneMetadata:
    """What a `.ckpt` says of its backbone, from its hyper-parameters and what lies beside them."""
    said = content["hyper_parameters"]
    name = said.get("backbone")
    is_custom = str(name).startswith(OWN_BACKBONE)
    require(
        not is_custom,
        f"{file}: of {name}: build it, and load the weights that begin with 'backbone.'",
    )
    known = {**content, **said}
    return validate_facts(
        {name: known[name] for name in (*FACTS, *PROVENANCE) if name in known}, file
    )


def load_all_networks(
    file: Path, content: dict[str, Any] | None = None
) -> tuple[nn.ModuleDict, dict[str, Any], BackboneMetadata]:
    """Return backbone, projector and predictor of a `.ckpt`, its hyper-parameters and metadata.

    `content` is what `read_checkpoint` gives, if that was read already.
    """
    if content is None:
        content = read_checkpoint(file)
    # Names that begin with an underscore are LightningCLI's.
    said = {
        name: value
        for name, value in content["hyper_parameters"].items()
        if not name.startswith("_")
    }
    facts = read_facts(file, content)
    network: dict[str, Any] = asdict(NetworkOptions()) | {"predictor": True, "image_size": None}
    del network["in_dim"]
    hparams: dict[str, Any] = network | said | {"stem": facts.stem}
    try:
        unknown = hparams.keys() - {*network, *FACTS, *TRAINING}
        require(
            not unknown,
            f"it has the hyper-parameters {', '.join(sorted(map(str, unknown)))}; if it is of a "
            "subclass whose on_save_checkpoint does not call super(), load it by "
            "SUBCLASS.load_from_checkpoint",
        )
        largest = max(value for value in hparams.values() if isinstance(value, int))
        require(largest <= LARGEST_SIZE, f"a size of {largest}")
        parts = build_networks(hparams["backbone"], hparams)
        networks = nn.ModuleDict(
            dict(zip(("backbone", "projector", "predictor"), parts, strict=True))
        )
    except (TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{file}: not a checkpoint of this program ({error})") from None
    load_strictly(networks, rename_compiled(content["state_dict"]), file)
    return networks, hparams, facts


def load_weights(model: "SimSiam", path: str | Path) -> None:
    """Start `model` from weights alone: a whole checkpoint's, or those of a backbone."""
    file = find_checkpoint(path, whole=True)
    content = {} if file.suffix == ".safetensors" else read_checkpoint(file)
    if file.suffix == ".safetensors":
        loaded = load_backbone_file(file)
    elif "subclass" in content:
        loaded = load_backbone_of_subclass(file, content)
    else:
        loaded = None
    if loaded is not None:
        names, ours, theirs = ARCHITECTURE, model.backbone, loaded.backbone
        hparams = loaded.facts.model_dump()
    else:
        names, ours = (*ARCHITECTURE, *HEADS), model
        theirs, hparams, _ = load_all_networks(file, content)
    have, want = (
        {**hp, "proj_hidden": hp.get("proj_hidden") or hp.get("out_dim")}
        for hp in (hparams, model.hparams)
    )
    wrong = [f"{name} {have[name]}, not {want[name]}" for name in names if have[name] != want[name]]
    require(not wrong, f"{file}: another architecture: {'; '.join(wrong)}")
    load_strictly(ours, theirs.state_dict(), file)


def load_strictly(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """`load_state_dict`, with a UserError for weights that are missing, unknown, of another shape, or no tensors."""
    try:
        network.load_state_dict(state, strict=True)
    except (
        RuntimeError,
        AttributeError,
        TypeError,
    ) as error:  # the latter two for keys or values of other types
        raise UserError(
            f"{file}: its weights do not fit: {' '.join(str(error).split())[:300]}"
        ) from None


def validate_facts(said: dict[str, Any], file: Path) -> BackboneMetadata:
    """What a file, which may come from anywhere, says of itself; UserError for values that cannot be."""
    try:
        return BackboneMetadata.model_validate(said)
    except ValidationError as error:
        wrong = dict.fromkeys(str(problem["loc"][0]) for problem in error.errors())
        raise UserError(
            f"{file}: does not say its {', '.join(wrong)} as a file of this program does"
        ) from None


def build_backbone(facts: BackboneMetadata, seed: int = 0) -> ResNet:
    """The network that a file describes, with the random weights of a run of that seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        zero_init = bool(facts.settings.get("zero_init_residual", True))
        conv_init = str(facts.settings.get("conv_init") or NetworkOptions.conv_init)
        try:
            network = BACKBONES[facts.backbone](facts.width, zero_init, facts.stem, conv_init)
        except ValueError as error:  # the settings in a file may say anything
            raise UserError(f"cannot build the network of this checkpoint: {error}") from None
    return attach_facts(network, facts)


def attach_facts(backbone: ResNet, facts: BackboneMetadata) -> ResNet:
    """Set `.mean`, `.std` and `.image_size`, and eval mode."""
    backbone.statistics = (
        (tuple(facts.mean), tuple(facts.std)) if facts.mean and facts.std else None
    )
    backbone.image_size = facts.image_size
    return backbone.eval()


def hash_weights(network: nn.Module) -> str:
    """16 hexadecimal digits of a hash over all weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
