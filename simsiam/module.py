"""SimSiam, the method: Algorithm 1 of Chen & He 2020, "Exploring Simple Siamese Representation Learning".

The file that matters. f is the encoder (backbone and projector), h the predictor; x1, x2 are two views of the same
images; z = f(x), p = h(z); the loss is D(p1, z2)/2 + D(p2, z1)/2, and no gradient flows into z.
"""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from models.batch_norm import expect_views, separates_views
from models.heads import OWN_BACKBONE, build_networks
from models.resnet import ResNet
from simsiam.config.options import NetworkOptions, OptimizerOptions
from simsiam.inputs import get_images, get_views, read_image_metadata, to_plain
from simsiam.loss import siamese_loss, z_std
from simsiam.optimizer import make_optimizer
from utils import distributed
from utils.trainer import follow_accumulation_schedule, is_between_steps

SIZES = ("width", "out_dim", "h_dim", "proj_hidden", "image_size")  # hyper-parameters


class SimSiam(pl.LightningModule):
    """A backbone that learns by predicting one view's projection from another's.

    Args:
        backbone: resnet10, resnet18, resnet34 or resnet50; or any module (B, 3, S, S) -> (B, F).
        width: channels of the backbone's first stage.
        out_dim: dimension d of z and p.
        h_dim: hidden dimension of the predictor.
        proj_layers: 2 or 3.
        proj_hidden: hidden dimension of the projector; None means `out_dim`.
        stop_grad, predictor: False takes the part away that keeps SimSiam from collapsing (sections 4.1 and 4.2).
        fixed_predictor: leave the predictor at its random initial weights (section 4.2).
        heads_bn: which layers of the heads have BN (section 4.4): paper, none, hidden or all.
        symmetric: False for D(p1, z2) alone (section 4.6).
        zero_init_residual: start every residual block as the identity.
        conv_init: initial weights of convolutions: kaiming (torchvision's) or torch (PyTorch's default).
        learning_rate, momentum, weight_decay: of SGD; `learning_rate` is the peak.
        warmup_epochs: of linear warm-up, before the cosine over the rest of the run; None for 10, or a tenth of the run
            if that is shorter.
        constant_predictor_lr: keep the predictor at the peak rate (section 4.2, "h with constant lr").
        predictor_lr_scale: peak rate of the predictor, as a multiple of `learning_rate`.
        image_size, mean, std, classes: of the images that it is trained on, kept for whoever loads the checkpoint; a
            datamodule that has them sets them.
        stem: of the backbone: cifar or imagenet.

    Logs `train_loss` and `z_std`, means over each epoch; every `log_every_n_steps` of the Trainer also their values of
    the step, as `train_loss_step` and `z_std_step`.

    Raises:
        ValueError: unknown backbone, sizes below 1.
    """

    def __init__(
        self,
        backbone: str | nn.Module = NetworkOptions.backbone,
        width: int = NetworkOptions.width,
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
        learning_rate: float = 0.06,
        momentum: float = OptimizerOptions.momentum,
        weight_decay: float = OptimizerOptions.weight_decay,
        warmup_epochs: float | None = None,
        constant_predictor_lr: bool = False,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] = (),
        stem: str = "cifar",
        conv_init: str = NetworkOptions.conv_init,
        predictor_lr_scale: float = OptimizerOptions.predictor_lr_scale,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore="backbone", logger=False)
        is_custom = isinstance(backbone, nn.Module)
        name = f"{OWN_BACKBONE} {type(backbone).__name__}" if is_custom else backbone
        self.hparams["backbone"] = name
        plain, left_out = self._plain_hparams()
        self.hparams.update(plain)
        if left_out:
            names = ", ".join(left_out)
            rank_zero_warn(f"hyper-parameters that are not plain values are not saved: {names}")
        self._check_sizes()
        self.backbone, self.projector, self.predictor = build_networks(backbone, self.hparams)
        self.predictor.requires_grad_(not fixed_predictor)
        self._losses = self.losses  # or the compiled form of it
        self.one_pass: bool | None = None  # encode all views at once; None: where it pays
        self._bn_knows_views: bool | None = None  # None: to be found out
        # Sums of loss and z_std over the batches of this epoch.
        self.sums = torch.zeros(2, dtype=torch.float64)
        self.batches = 0
        self._means_logged = False
        self._restored_gradients: dict[str, Tensor] = {}  # of a checkpoint between two steps

    def _plain_hparams(self) -> tuple[dict[str, Any], list[str]]:
        """Return the hyper-parameters that a checkpoint may hold, and the names of the others.

        Only a subclass has others, which stay in `self.hparams` for its own use.
        """
        plain: dict[str, Any] = {}
        left_out: list[str] = []
        for name, value in self.hparams.items():
            try:
                plain[name] = to_plain(value)
            except TypeError:
                left_out.append(name)
        return plain, left_out

    def _check_sizes(self) -> None:
        for name in SIZES:
            size = self.hparams.get(name)
            if size is not None and (type(size) is not int or size < 1):
                raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}")

    def forward(self, x: Tensor) -> Tensor:
        """Return pooled backbone features, which are used after training: (B, 3, S, S) -> (B, F)."""
        return self.backbone(x)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        """Return the features (B, F) of a batch of images (B, 3, S, S), or of `(images, ...)`."""
        return self(get_images(batch))

    def setup(self, stage: str) -> None:
        """Learn from the datamodule what the training images are, so that checkpoints can tell."""
        if stage != "fit":  # images to predict or to test may be others
            return
        datamodule = getattr(self.trainer, "datamodule", None)
        metadata, ignored = read_image_metadata(datamodule)
        self.hparams.update(metadata)
        if isinstance(self.backbone, ResNet) and "image_size" in metadata:
            self.backbone.image_size = metadata["image_size"]
        if ignored:
            rank_zero_warn(f"{type(datamodule).__name__}: not taken over: {'; '.join(ignored)}")

    def on_train_start(self) -> None:
        """Restore the gradients of a checkpoint that was written between two optimizer steps."""
        self._bn_knows_views = None  # Trainer(sync_batchnorm=True) has replaced the layers by now
        follow_accumulation_schedule(self.trainer)
        for name, parameter in self.named_parameters():
            if name in self._restored_gradients:
                parameter.grad = self._restored_gradients[name].to(parameter)
        self._restored_gradients = {}

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Algorithm 1.

        Args:
            batch: the views [x1, x2] or more, (B, 3, S, S) each, or ([x1, x2], labels, ...).

        Raises:
            ValueError: the batch is something else.
        """
        x = get_views(batch)
        one_pass = self._takes_one_pass(x)
        is_compiled = self._losses != self.losses
        with expect_views(self, len(x) if one_pass else 1, compiled=is_compiled):
            loss, metrics = self._losses(x, one_pass)
        self._record(metrics, len(x[0]), batch_idx)
        return {"loss": loss, "z_std": metrics[1]}  # tensors: nothing here waits for the device

    def _takes_one_pass(self, x: Sequence[Tensor]) -> bool:
        """Return whether all views go through the networks at once: on a GPU, if that changes nothing."""
        if self.one_pass is not None:
            return self.one_pass
        if not x[0].is_cuda or any(view.shape != x[0].shape for view in x):
            return False
        if self._bn_knows_views is None:
            self._bn_knows_views = separates_views(self)
        return self._bn_knows_views

    def losses(self, x: Sequence[Tensor], one_pass: bool) -> tuple[Tensor, Tensor]:
        """Return the loss, and a detached tensor (2,): the loss, z_std of the first view."""
        z, p = self.encode(x, one_pass)
        loss = siamese_loss(p, z, self.hparams["stop_grad"], self.hparams["symmetric"])
        return loss, torch.stack([loss.detach(), z_std(z[0])])

    def encode(
        self, x: Sequence[Tensor], one_pass: bool
    ) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """z = f(x) and p = h(z) of each view, each with BN statistics of its own.

        On a GPU in one pass, which gives the same numbers; a CPU would be 5 to 10 % slower for it.
        """
        if not one_pass:
            z = [self.projector(self.backbone(x_i)) for x_i in x]
            return z, [self.predictor(z_i) for z_i in z]
        z = self.projector(self.backbone(torch.cat(list(x))))  # (V * B, d)
        return z.chunk(len(x)), self.predictor(z).chunk(len(x))

    def _record(self, metrics: Tensor, batch_size: int, batch_idx: int) -> None:
        """Add loss and z_std (2,) of a batch to the epoch's sums; log them now and then.

        Not by `self.log(on_epoch=True)` at each step, which takes half a millisecond of the
        processor and forgets what was before a resume.
        """
        if self._trainer is None:
            return
        if batch_idx == 0:  # of a new epoch; after a resume in mid-epoch, the sums go on
            self.sums = torch.zeros_like(self.sums)
            self.batches = 0
            self._means_logged = False
        self.sums = self.sums.to(metrics.device) + metrics
        self.batches += 1
        every = self.trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]
        if every and (self.trainer.global_step + 1) % every == 0:
            step = {"train_loss_step": metrics[0], "z_std_step": metrics[1]}
            self.log_dict(step, on_step=True, on_epoch=False, batch_size=batch_size)

    def epoch_means(self) -> Tensor:
        """Return the means of loss and z_std (2,) over this epoch so far and over all processes."""
        return distributed.all_reduce_mean(self.sums) / max(1, self.batches)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Log the means with the epoch's last batch, so that callbacks have them at its end."""
        if self.trainer.fit_loop.epoch_loop.done:
            self._log_means()

    def on_train_epoch_end(self) -> None:
        if not self._means_logged:  # validation ended the epoch early
            self._log_means()

    def _log_means(self) -> None:
        train_loss, z_std_mean = self.epoch_means()
        means = {"train_loss": train_loss, "z_std": z_std_mean}
        self.log_dict(means, on_step=False, on_epoch=True, batch_size=1)
        self._means_logged = True

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        sums = distributed.all_reduce_mean(self.sums)
        checkpoint["epoch_so_far"] = {"sums": sums, "batches": self.batches}
        resumable = "optimizer_states" in checkpoint  # not of weights alone
        if resumable and not is_between_steps(self.trainer):
            checkpoint["accumulated_gradients"] = {
                name: distributed.all_reduce_mean(parameter.grad)
                for name, parameter in self.named_parameters()
                if parameter.grad is not None
            }
        if "hyper_parameters" in checkpoint:
            checkpoint["hyper_parameters"] = self._plain_hparams()[0]
        if type(self) is not SimSiam:  # only the backbone is known to `load_backbone` then
            checkpoint["subclass"] = type(self).__name__

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if so_far := checkpoint.get("epoch_so_far"):
            self.sums = so_far["sums"].to(self.device)
            self.batches = so_far["batches"]
        self._restored_gradients = checkpoint.get("accumulated_gradients", {})

    def compile_networks(self, cuda_graphs: bool = False) -> None:
        """Compile all of a step but the optimizer's as one graph, for one size of batch.

        Args:
            cuda_graphs: replay the step's kernels instead of launching each: for one process that does not accumulate
                gradients, since a replay writes them to the same memory.
        """
        # 8: the ReLU behind a BN is computed anew where it is used, from six values, instead of kept
        options: dict[str, Any] = {"triton.cudagraphs": cuda_graphs, "realize_reads_threshold": 8}
        alone = distributed.world_size() == 1
        self._losses = torch.compile(self.losses, fullgraph=alone, dynamic=False, options=options)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return SGD and its warm-up and cosine, see `simsiam.optimizer`."""
        return make_optimizer(self)
