"""SimSiam, the method: Algorithm 1 of Chen & He 2020, "Exploring Simple Siamese Representation Learning".

The file that matters. f is the encoder (backbone and projector), h the predictor; x1, x2 are two views of the same
images; z = f(x), p = h(z); the loss is D(p1, z2)/2 + D(p2, z1)/2, and no gradient flows into z.
"""

from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from models.batch_norm import expect_views, separates_views
from models.heads import OWN_BACKBONE, build_networks
from models.resnet import ResNet
from simsiam.config.options import NetworkOptions, OptimizerOptions
from simsiam.loss import siamese_loss, z_std
from utils import distributed
from utils.schedule import warmup_cosine


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
        own = isinstance(backbone, nn.Module)
        self.hparams["backbone"] = f"{OWN_BACKBONE} {type(backbone).__name__}" if own else backbone
        self.backbone, self.projector, self.predictor = build_networks(backbone, self.hparams)
        self.predictor.requires_grad_(not fixed_predictor)
        self._losses = self.losses
        self.one_pass = None if separates_views(self.backbone) else False  # all views at once; None for where it pays
        self.sums, self.batches = torch.zeros(2, dtype=torch.float64), 0  # of loss and z_std, over the epoch so far

    def forward(self, x: Tensor) -> Tensor:
        """Pooled backbone features, which is what one uses after training: (B, 3, S, S) -> (B, F)."""
        return self.backbone(x)

    def setup(self, stage: str) -> None:
        """Learn from the datamodule what its images are, for whoever loads a checkpoint."""
        data = getattr(self.trainer, "datamodule", None)
        if (mean := getattr(data, "mean", None)) is not None and (std := getattr(data, "std", None)) is not None:
            self.hparams.update(mean=torch.as_tensor(mean).tolist(), std=torch.as_tensor(std).tolist())
        if (size := getattr(data, "size", None)) is not None:
            self.hparams["image_size"] = size
            if isinstance(self.backbone, ResNet):
                self.backbone.image_size = size
        self.hparams["classes"] = list(getattr(data, "classes", None) or self.hparams["classes"])

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        """Algorithm 1. `batch` is the views [x1, x2] or more, (B, 3, S, S) each, or ([x1, x2], labels)."""
        x: Sequence[Tensor] = batch if isinstance(batch[0], Tensor) else batch[0]
        one_pass = x[0].is_cuda if self.one_pass is None else self.one_pass
        with expect_views(self, len(x) if one_pass else 1, compiled=self._losses != self.losses):
            loss, figures = self._losses(x, one_pass)
        self._log(figures, len(x[0]))
        return {"loss": loss, "z_std": figures[1]}  # tensors: nothing here waits for the device

    def losses(self, x: Sequence[Tensor], one_pass: bool) -> tuple[Tensor, Tensor]:
        """The loss; and it and z_std of the first view, without gradient (2,)."""
        z, p = self.encode(x, one_pass)
        loss = siamese_loss(p, z, self.hparams["stop_grad"], self.hparams["symmetric"])
        return loss, torch.stack([loss.detach(), z_std(z[0])])

    def encode(self, x: Sequence[Tensor], one_pass: bool) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """z = f(x) and p = h(z) of each view, each with BN statistics of its own.

        On a GPU in one pass, which gives the same numbers; a CPU would be 5 to 10 % slower for it.
        """
        if not one_pass:
            z = [self.projector(self.backbone(x_i)) for x_i in x]
            return z, [self.predictor(z_i) for z_i in z]
        z = self.projector(self.backbone(torch.cat(list(x))))  # (V * B, d)
        return z.chunk(len(x)), self.predictor(z).chunk(len(x))

    def _log(self, figures: Tensor, batch_size: int) -> None:
        """Log loss and z_std (2,): the means of the epoch with its last batch, exact also after a resume in mid-epoch.

        Not by `self.log` at each step: it takes half a millisecond of the processor, and forgets what was before a
        resume.
        """
        if self._trainer is None:
            return
        self.sums, self.batches = self.sums.to(figures.device) + figures, self.batches + 1
        if (self.trainer.global_step + 1) % self.trainer.log_every_n_steps == 0:  # pyright: ignore[reportAttributeAccessIssue]
            step = {"train_loss_step": figures[0], "z_std_step": figures[1]}
            self.log_dict(step, on_step=True, on_epoch=False, batch_size=batch_size)
        if self.trainer.is_last_batch:
            self.means = distributed.all_reduce_mean(self.sums) / self.batches
            means = {"train_loss": self.means[0], "z_std": self.means[1]}
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=batch_size)

    def on_train_epoch_start(self) -> None:  # not after a resume in mid-epoch
        self.sums, self.batches = torch.zeros_like(self.sums), 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_so_far"] = {"sums": distributed.all_reduce_mean(self.sums), "batches": self.batches}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if so_far := checkpoint.get("epoch_so_far"):
            self.sums, self.batches = so_far["sums"].to(self.device), so_far["batches"]

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

    def configure_optimizers(self) -> Any:
        """SGD with weight decay on every parameter, BN's included (as the paper's), stepped along the whole run."""
        hp = self.hparams
        groups = [
            {"params": [*self.backbone.parameters(), *self.projector.parameters()]},
            {
                "params": list(self.predictor.parameters()),
                "lr": hp["learning_rate"] * hp["predictor_lr_scale"],
                "constant_lr": hp["constant_predictor_lr"],
            },
        ]
        groups = [g for g in groups if any(p.requires_grad for p in g["params"])]  # an ablated predictor has none
        optimizer = torch.optim.SGD(
            groups, hp["learning_rate"], hp["momentum"], weight_decay=hp["weight_decay"], fused=True
        )
        steps = int(self.trainer.estimated_stepping_batches)
        self.trainer.fit_loop.setup_data()  # with `max_steps`, the length of an epoch is not known before
        epoch = self.trainer.num_training_batches / self.trainer.accumulate_grad_batches  # steps
        epochs = hp["warmup_epochs"]
        warmup = min(10 * epoch, steps / 10) if epochs is None else epochs and epochs * epoch
        schedule = warmup_cosine(optimizer, round(min(warmup, steps - 1)), steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
