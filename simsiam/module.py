"""SimSiam, as a LightningModule: Algorithm 1 of Chen & He 2020 (arXiv 2011.10566).

The paper is "Exploring Simple Siamese Representation Learning". In its letters, a step is:

    x1, x2 = two augmented views of the same images    # simsiam/augment.py
    z1, z2 = f(x1), f(x2)                              # the encoder f: backbone, then projector
    p1, p2 = h(z1), h(z2)                              # the predictor h
    L = D(p1, z2) / 2 + D(p2, z1) / 2                  # simsiam/loss.py
    L.backward(), then update f and h by SGD           # simsiam/optimizer.py

D is the negative cosine similarity. It treats z as a constant: no gradient flows into z.
With `heavy_views`, which are not in the paper, L also has the terms of `simsiam.loss.heavy_loss`.

The methods `f`, `loss_and_metrics` and `training_step` are Algorithm 1. The networks are in
models/. What a run logs and needs for an exact resume is in simsiam/resumable_module.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.batch_norm import expect_views, separates_views
from models.choices import is_library_backbone
from models.convert_batch_norm import convert_batch_norm
from models.heads import CUSTOM_BACKBONE_PREFIX, build_networks
from models.resnet import ResNet
from simsiam.compilation import CompiledPerShape
from simsiam.config.network_options import NetworkOptions
from simsiam.config.optimizer_options import DEFAULT_LEARNING_RATE, OptimizerOptions
from simsiam.config.options import MethodOptions
from simsiam.hparams import (
    check_hparams,
    count_one_way_views,
    make_plain,
    refuse_resnet_settings,
    select_plain,
)
from simsiam.inputs import copy_image_metadata, get_images, get_views
from simsiam.loss import heavy_loss, siamese_loss, z_std
from simsiam.optimizer import follow_tuners, make_optimizer, make_schedule
from simsiam.resumable_module import ResumableModule
from utils import distributed


class SimSiam(ResumableModule):
    """Learn features of images by predicting one view's projection from another view.

    Args:
        backbone: "resnet10", "resnet18", "resnet34" or "resnet50"; or a network of a library by its
            name, "torchvision/NAME" or "timm/NAME", without weights and classifier; or a module of
            your own that maps images (B, 3, S, S) to features (B, F).
        width: Channels of the first stage of a ResNet. This argument, `stem`, `zero_init_residual`
            and `conv_init` are for the four ResNets alone.
        stem: First layers of a ResNet, "cifar" or "imagenet".
        zero_init_residual: Start every residual block of the backbone as the identity.
        conv_init: Initial weights of the backbone's convolutions, "kaiming" (as in torchvision)
            or "torch" (PyTorch's default).
        out_dim: Dimension d of the projections z and the predictions p.
        h_dim: Hidden dimension of the predictor.
        proj_layers: Number of layers of the projector, 2 or 3.
        proj_hidden: Hidden dimension of the projector. None means `out_dim`.
        heads_bn: Which layers of the heads have BN (section 4.4): "paper" (all of the projector
            and the hidden one of the predictor), "none", "hidden" (of both heads) or "all".
        stop_grad: Stop the gradient at z. Without it, SimSiam collapses (section 4.1).
        predictor: Use the predictor h. Without it, SimSiam collapses (section 4.2).
        fixed_predictor: Keep the predictor at its random initial weights (section 4.2).
        symmetric: Predict each view from the other. If False, L is D(p1, z2) (section 4.6).
        learning_rate: Peak learning rate of SGD.
        momentum: Momentum of SGD.
        weight_decay: Weight decay of SGD, on all parameters.
        warmup_epochs: Epochs of linear warm-up before the cosine decay. None means 10 epochs, or
            a tenth of the run if that is shorter.
        constant_predictor_lr: Keep the predictor at its peak rate (section 4.2).
        predictor_lr_scale: Peak rate of the predictor, as a multiple of `learning_rate`.
        heavy_views: How many of the last views are heavy views, made of the first views.
        heavy_loss: "one-way" for DSSL's loss of them, "symmetric" to treat them as ordinary views.
        heavy_weight_in, heavy_weight_out: Weights of the terms of `simsiam.loss.heavy_loss`.
        image_size: Side of the training images in pixels. Vision transformers need it.
        mean: Mean of each channel of the training images, on the scale of 0 to 1.
        std: Standard deviation of each channel of the training images, on the same scale.
        classes: Class names of the training images.

    `mean`, `std` and `classes` do not change the training, and neither does `image_size`, except
    for networks that are built for one size. Checkpoints save them for later users of the backbone,
    and a datamodule that knows them sets them.

    Logs `train_loss` and `z_std`, averaged over each epoch. Every `log_every_n_steps` steps of the
    Trainer it also logs the values of one batch, as `train_loss_step` and `z_std_step`.

    Raises:
        ValueError: An argument has an unknown value, or a size is not a positive whole number.
    """

    def __init__(
        self,
        backbone: str | nn.Module = NetworkOptions.backbone,
        width: int | None = NetworkOptions.width,
        out_dim: int = NetworkOptions.out_dim,
        h_dim: int = NetworkOptions.h_dim,
        proj_layers: int = NetworkOptions.proj_layers,
        proj_hidden: int | None = None,
        stop_grad: bool = True,
        predictor: bool = True,
        fixed_predictor: bool = False,
        heads_bn: str = NetworkOptions.heads_bn,
        symmetric: bool = True,
        zero_init_residual: bool = NetworkOptions.zero_init_residual,
        learning_rate: float = DEFAULT_LEARNING_RATE,
        momentum: float = OptimizerOptions.momentum,
        weight_decay: float = OptimizerOptions.weight_decay,
        warmup_epochs: float | None = None,
        constant_predictor_lr: bool = False,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] = (),
        stem: str | None = "cifar",
        conv_init: str = NetworkOptions.conv_init,
        predictor_lr_scale: float = OptimizerOptions.predictor_lr_scale,
        heavy_views: int = MethodOptions.heavy_views,
        heavy_loss: str = MethodOptions.heavy_loss,
        heavy_weight_in: float = MethodOptions.heavy_weight_in,
        heavy_weight_out: float = MethodOptions.heavy_weight_out,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="backbone", logger=False)
        if isinstance(backbone, nn.Module):
            self.hparams["backbone"] = f"{CUSTOM_BACKBONE_PREFIX} {type(backbone).__name__}"
        else:
            self.hparams["backbone"] = backbone

        make_plain(self.hparams)
        check_hparams(self.hparams)
        if is_library_backbone(backbone):
            refuse_resnet_settings(self.hparams, SimSiam.__init__)
            self.hparams.update(width=None, stem=None)

        # f is the backbone and the projector; h is the predictor.
        self.backbone, self.projector, self.predictor = build_networks(backbone, self.hparams)
        self.predictor.requires_grad_(not fixed_predictor)
        if is_library_backbone(backbone):
            convert_batch_norm(self.backbone)

        # Whether to encode all views as one batch. If None, `training_step` does what is faster.
        self.one_pass: bool | None = None
        # Whether all BN layers can normalise each view by itself. None if not checked yet.
        self._bn_separates_views: bool | None = None
        # `self.loss_and_metrics`, compiled by `compile_networks`.
        self._compiled_losses: Callable[..., tuple[Tensor, dict[str, Tensor]]] | None = None

    # ---------------------------------------------------------------- Algorithm 1

    def f(self, x: Tensor) -> Tensor:
        """Return the projections z of images x: (B, 3, S, S) -> (B, d)."""
        return self.projector(self.backbone(x))

    def loss_and_metrics(
        self, x: Sequence[Tensor], one_pass: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch, and its other metrics by name.

        Args:
            x: The views x1, x2, ... of the same images, two or more, (B, 3, S, S) each. The last
                `heavy_views` of them are heavy views, the i-th made of the i-th view.
            one_pass: Encode all views as one batch. The caller must have entered
                `expect_views(self, len(x))`. BN then normalises each view by itself, and the
                numbers are the same. This is faster on a GPU, but 5 to 10 % slower on a CPU.

        Returns:
            The loss L; and detached scalars, of which there is one: "z_std" of x1.
        """
        h = self.predictor
        if one_pass:
            all_z = self.f(torch.cat(list(x)))  # (V * B, d)
            z = all_z.chunk(len(x))  # V views of (B, d)
            p = h(all_z).chunk(len(x))
        else:
            z = [self.f(x_i) for x_i in x]
            p = [h(z_i) for z_i in z]

        hp = self.hparams
        n = len(x) - count_one_way_views(self.hparams)  # The views from n on are heavy and one-way.
        loss = siamese_loss(p[:n], z[:n], hp["stop_grad"], hp["symmetric"])
        if n < len(x):
            weights = hp["heavy_weight_in"], hp["heavy_weight_out"]
            loss = loss + heavy_loss(p[:n], z[:n], p[n:], z[n:], *weights, hp["stop_grad"])
        return loss, {"z_std": z_std(z[0])}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Return the loss of a batch, which Lightning minimises.

        Args:
            batch: The views [x1, x2, ...] of the same images, (B, 3, S, S) each, or a tuple
                ([x1, x2, ...], labels, ...). Labels are not used.
            batch_idx: Position of the batch in the epoch.

        Returns:
            The scalars "loss" and "z_std". They are tensors, because to read their numbers here
            would make the CPU wait for the GPU.

        Raises:
            ValueError: The batch has another form.
        """
        x = get_views(batch, count_one_way_views(self.hparams))
        one_pass = self._choose_one_pass(x)
        views_in_one_pass = len(x) if one_pass else 1

        compute_losses = self._compiled_losses or self.loss_and_metrics
        is_compiled = self._compiled_losses is not None
        # BN layers must know how many views they see at a time.
        with expect_views(self, views_in_one_pass, compiled=is_compiled):
            loss, metrics = compute_losses(x, one_pass)

        self.record_metrics({"train_loss": loss, **metrics}, len(x[0]), batch_idx)
        return {"loss": loss, **metrics}

    def _choose_one_pass(self, x: Sequence[Tensor]) -> bool:
        """Return whether to encode all views as one batch."""
        if self.one_pass is not None:
            return self.one_pass
        # Only a GPU is faster with one pass. Views of different sizes cannot be one batch, and all
        # BN layers must be able to normalise each view by itself.
        have_same_shape = all(view.shape == x[0].shape for view in x)
        if not x[0].is_cuda or not have_same_shape:
            return False
        if self._bn_separates_views is None:
            self._bn_separates_views = separates_views(self)
        return self._bn_separates_views

    def configure_optimizers(self) -> dict[str, Any]:
        """Return SGD and its schedule, linear warm-up and cosine decay (section 3)."""
        optimizer = make_optimizer(self)
        schedule = {"scheduler": make_schedule(self, optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    # ---------------------------------------------------------------- after training

    def forward(self, x: Tensor) -> Tensor:
        """Return the backbone's features: (B, 3, S, S) -> (B, F). Later tasks use these, not z."""
        return self.backbone(x)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the features (B, F) of a batch of images (B, 3, S, S), or of `(images, ...)`."""
        return self(get_images(batch))

    # ---------------------------------------------------------------- hooks of the Trainer

    def setup(self, stage: str) -> None:
        """Copy mean, std, size and classes of the training images from the datamodule."""
        if stage != "fit":
            return  # Images to predict or to test may differ from the training images.
        datamodule = getattr(self.trainer, "datamodule", None)
        image_size = copy_image_metadata(datamodule, self.hparams)
        # The monitors crop images to this size. Mean and std are set when a checkpoint is loaded.
        if isinstance(self.backbone, ResNet) and image_size is not None:
            self.backbone.image_size = image_size

    def on_fit_start(self) -> None:
        """Follow the rate and the batch size that callbacks such as BatchSizeFinder have found."""
        follow_tuners(self)

    def on_train_start(self) -> None:
        """Restore the state of a resumed run, and forget the last check of the BN layers."""
        super().on_train_start()
        # In a second fit, Trainer(sync_batchnorm=True) may have replaced the BN layers.
        self._bn_separates_views = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save plain hyper-parameters only, so that loading a checkpoint runs no code from it."""
        super().on_save_checkpoint(checkpoint)
        if "hyper_parameters" in checkpoint:
            plain_hparams, _ = select_plain(self.hparams)
            checkpoint["hyper_parameters"] = plain_hparams
        if type(self) is not SimSiam:
            # For a subclass, `load_backbone` does not check the heads, which may be other ones.
            checkpoint["subclass"] = type(self).__name__

    # ---------------------------------------------------------------- compilation

    def compile_networks(self, cuda_graphs: bool = False) -> None:
        """Compile the forward and backward pass of a step as one graph, for each shape of views.

        Args:
            cuda_graphs: Replay the kernels of a step instead of launching each of them. A replay
                overwrites the gradients of the one before, so gradients cannot be accumulated.
                Communication between processes cannot be replayed either.
        """
        # Inductor writes a value that is used twice to memory if it is computed from more than 4
        # tensors. A ReLU after BN has 6. Computing it again is faster, so the threshold is raised.
        options: dict[str, Any] = {"realize_reads_threshold": 8}
        # Communication between processes breaks the graph, and so may other networks than ours.
        is_one_graph = distributed.world_size() == 1 and isinstance(self.backbone, ResNet)
        options["triton.cudagraphs"] = cuda_graphs and is_one_graph
        self._compiled_losses = CompiledPerShape(
            self.loss_and_metrics, fullgraph=is_one_graph, dynamic=False, options=options
        )
