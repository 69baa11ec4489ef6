"""Training on labels: the classifier, and the `Job` of `mpp supervised` and `mpp finetune` (made in mpp/commands)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from mpp.config.commands import FineTune, Supervised
from mpp.config.options import Data, LabelledAugment
from mpp.data.augment import View, mixed, normalise
from mpp.data.batches import readable, refuse_too_many
from mpp.data.images import Images, bands_of
from mpp.data.loader import Batch, Share, eval_loader, no_draws
from mpp.data.randomness import Purpose, generator
from mpp.data.sources.classes import class_name
from mpp.data.splits import at_most
from mpp.data.training_set import IndexedSet, Reading
from mpp.errors import UserError, counted
from mpp.evaluation.calibration import best_temperature, scores_of
from mpp.evaluation.predictions import Predictions, predict
from mpp.evaluation.quick_probe import QuickProbe
from mpp.figures.confusion import paint_confusion
from mpp.models.backbone import Backbone, pool_tokens
from mpp.models.backbones import class_of, load_exported
from mpp.models.pretrained import Pretrained
from mpp.models.sizes import refuse_no_numbers, refuse_odd_classes, refuse_unknown, shown
from mpp.run.machine import workers_of
from mpp.training.flops import flops_an_image


class Classifier(
    nn.Module,
    Pretrained,
    library_name="masked-patch-pretraining",
    tags=["vision-transformer", "image-classification"],
    license="apache-2.0",
    coders={Backbone: (lambda vit: vit.hub_config(), lambda config: config)},
):
    """Backbone + pooling + head: normalised images (B, C, H, W) -> scores of the classes (B, classes).

    Args:
        vit: the encoder, or the arguments of a fresh one.
        classes: their names, in the order of the scores.
        pool: "mean" of the patches' tokens or the "cls" token.
        head: "linear", zero-initialised, as the ViT paper fine-tunes; "mlp", with one hidden tanh layer of width D, as
            it pretrains (arXiv 2010.11929, section 3.1; initialisation as vit_jax/models_vit.py).
        temperature: what the scores are divided by, so that their softmax can be believed; see `calibrate`.

    Raises ValueError for arguments that fit no model.
    """

    in_run = "classifier"
    _hub_mixin_config: dict[str, Any]  # the arguments of __init__, stored by the mixin

    def __init__(
        self,
        vit: Backbone | dict[str, Any],
        classes: Sequence[str],
        pool: str = "mean",
        head: str = "linear",
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        refuse_no_numbers(1000, temperature=temperature)
        if not temperature:
            raise ValueError("temperature must be above 0")
        self.temperature = temperature
        refuse_unknown(pool=(pool, ("mean", "cls")), head=(head, ("linear", "mlp")))
        self.vit = vit if isinstance(vit, Backbone) else class_of(vit)(**vit)
        self.classes, self.pool = list(classes), pool
        dim = self.vit.embed_dim
        hidden, last = nn.Linear(dim, dim), nn.Linear(dim, len(self.classes))
        nn.init.xavier_uniform_(hidden.weight)
        for zero in (hidden.bias, last.weight, last.bias):
            nn.init.zeros_(zero)
        self.head = nn.Sequential(hidden, nn.Tanh(), last) if head == "mlp" else nn.Sequential(last)

    @classmethod
    def refuse_odd(cls, arguments: dict[str, Any]) -> None:
        if not isinstance(arguments.get("vit"), dict):
            raise ValueError(f"vit must be the arguments of a ViT, not {shown(arguments.get('vit'))}")
        refuse_odd_classes(arguments.get("classes"))

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, C, H, W) -> scores (B, classes)."""
        scores = self.head(pool_tokens(self.vit(images), self.pool))  # (B, 1 + N, D) -> (B, D) -> (B, classes)
        return scores if self.temperature == 1 else scores / self.temperature

    def calibrate(self, temperature: float) -> None:
        """Divide the scores by a temperature from now on, also once the model is saved and loaded."""
        self.temperature = temperature
        self._hub_mixin_config = self._hub_mixin_config | {"temperature": temperature}


def load_classifier(init: str) -> Classifier:
    """A fine-tuned model from its run's folder, its classifier/ or a hub id. Raises UserError if there is none."""
    return load_exported(Classifier, init, "classifier", strict=True)


_LAST_STEPS = 50  # over which training accuracy is averaged


class Classify:
    """Classification of one set of images, measured on held-out ones."""

    def __init__(
        self,
        model: Classifier,
        train: Images,
        test: Images,
        config: Supervised | FineTune,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.config, self.accelerator = model, config, accelerator
        self.eval_images = at_most(test, config.eval.images)
        self.unreadable: dict[str, str] = {}
        self.predictions: Predictions | None = None  # of the last evaluation
        a = config.augment
        if a.randaugment and model.vit.in_chans != 3:
            raise UserError(
                f"--augment.randaugment {a.randaugment} changes red, green and blue, and the images have "
                f"{counted(model.vit.in_chans, 'channel')}; leave it out"
            )
        assert a.crop != "auto"
        self.learnt: deque[Tensor] = deque(maxlen=_LAST_STEPS)  # training accuracies of the last steps
        self.in_pairs = bool(a.mixup or a.cutmix)
        model.vit.activation_checkpointing = config.train.activation_checkpointing
        reading = Reading(
            View(model.vit.img_size, a.crop, a.pad, a.scale, a.flip, a.randaugment),
            no_draws,
            config.seed,
            config.train.steps,
            config.train.batch_size,
            workers_of(config.data, accelerator),
            accelerator.device.type == "cuda",
            labels=True,
        )
        self.data = IndexedSet(train, reading)
        self.probe: Callable[[Backbone], dict[str, float]] = lambda vit: {}
        if isinstance(config, Supervised):
            self.probe = QuickProbe.asked_for(config, accelerator, self.unreadable, bands_of(train), model.vit.img_size)

    def flops_an_image(self) -> int:
        return flops_an_image(self.model)

    def training_step(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        images = normalise(batch["images"])
        weights = F.one_hot(batch["labels"], len(self.model.classes)).float()  # (B, classes)
        augment = self.config.augment
        if self.in_pairs:
            rng = generator(self.config.seed, Purpose.MIX, step)
            images, weights = mixed(images, weights, augment.mixup, augment.cutmix, rng)
        scores = model(images)
        loss = F.cross_entropy(scores, weights, label_smoothing=self.config.train.label_smoothing)
        with torch.no_grad():
            top1 = weights.gather(1, scores.argmax(-1, keepdim=True)).mean()  # the weight of the class predicted
        self.learnt.append(top1)
        return loss, {"top1": top1}

    @property
    def train_top1(self) -> float | None:
        """Training accuracy over the last steps, in 0..1; None before the first."""
        return torch.stack([*self.learnt]).mean().item() if self.learnt else None

    def look(self, batch: Batch) -> tuple[np.ndarray, list[str]]:
        return batch["images"].numpy(), [self.model.classes[label] for label in batch["labels"].tolist()]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        c = self.config
        self.predictions = predict_set(
            cast(Classifier, model), self.eval_images, c.data, c.eval.batch_size, self.accelerator, self.unreadable
        )
        return self.probe(cast(Classifier, model).vit) | self.predictions.metrics()

    def pictures(self, model: nn.Module) -> dict[str, Tensor]:
        return paint_confusion(self.predictions.confusion, self.model.classes) if self.predictions else {}


def refuse_odd_pairs(augment: LabelledAugment, share: Share) -> None:
    """Raise UserError if pairs of images are to be mixed and a process has an odd number at a time."""
    count = len(share.places(0))
    if (augment.mixup or augment.cutmix) and count % 2:
        raise UserError(
            f"--augment.mixup and --augment.cutmix mix pairs of images, but a process has {count} at a time; make "
            f"--train.batch-size an even multiple of processes x --train.accumulate"
        )


def calibrate(model: Classifier, held: Images, data: Data, batch_size: int, accelerator: Accelerator) -> None:
    """Give a model the temperature with which its probabilities fit labels that it was not trained on; the same on all
    processes. The predicted classes stay."""
    part = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    workers = workers_of(data, accelerator)
    size = model.vit.img_size
    loader = eval_loader(held, size, no_draws, batch_size=batch_size, workers=workers, labels=True, **part)
    scores, labels = scores_of(model.eval(), readable(loader, data.on_error, {}), accelerator)
    model.calibrate(best_temperature(scores * model.temperature, labels))


def batches_of(
    images: Images,
    vit: Backbone,
    data: Data,
    batch_size: int,
    accelerator: Accelerator,
    unreadable: dict[str, str],
    labels: bool,
) -> Iterator[Batch]:
    """This process's batches of a set, as an encoder takes them; images that cannot be read are noted."""
    loader = eval_loader(
        images,
        vit.img_size,
        no_draws,
        batch_size=batch_size,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        workers=workers_of(data, accelerator),
        labels=labels,
        pin_memory=accelerator.device.type == "cuda",
    )
    return readable(loader, data.on_error, unreadable)


def predict_batches(
    model: Classifier,
    batches: Iterable[Batch],
    names: list[str] | None,
    accelerator: Accelerator,
    total: int | None,
    top: int = 1,
) -> Predictions:
    """What a `Classifier` says of a set, of which this process has these batches. `names` are its classes if it is
    labelled, all of them among the model's, in whatever order; `total` images are expected."""
    number_of = {class_name(name): number for number, name in enumerate(model.classes)}
    relabel = None if names is None else torch.tensor([number_of[class_name(name)] for name in names])
    return predict(model, batches, relabel, accelerator, total, top)


def predict_set(
    model: Classifier,
    images: Images,
    data: Data,
    batch_size: int,
    accelerator: Accelerator,
    unreadable: dict[str, str],
    labelled: bool = True,
) -> Predictions:
    """What a `Classifier` says of a set that is read by index. Raises UserError for a class that it does not know."""
    names, known = images.label_names or [], set(map(class_name, model.classes))
    if labelled and (unknown := [name for name in map(class_name, names) if name not in known]):
        raise UserError(
            f"--data.path {data.path} has classes that the model does not know ({', '.join(unknown[:5])}); "
            f"it knows: {', '.join(model.classes[:10])}{', ...' if len(model.classes) > 10 else ''}"
        )
    batches = batches_of(images, model.vit, data, batch_size, accelerator, unreadable, labelled)
    found = predict_batches(model, batches, names if labelled else None, accelerator, len(images))
    kind = "held-out images" if labelled else "images"
    refuse_too_many(len(images) - len(found.index), len(images), data, unreadable, kind)
    return found
