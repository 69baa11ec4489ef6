"""Training on labels: the commands as a user runs them, and the pieces they stand on against independent references."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.metrics import confusion_matrix, top_k_accuracy_score
from torchvision.transforms.v2.functional import pil_to_tensor

import mpp
from mpp import Classifier, ViT
from mpp.commands.predict import batches_of_shards
from mpp.config import Predict
from mpp.config.options import Data, FineTuneOptim, Optim
from mpp.data.augment import mixed, normalise, randaugmented
from mpp.data.images import load_images
from mpp.data.parts import Parts
from mpp.data.splits import open_whole
from mpp.errors import UserError
from mpp.evaluation.predictions import Predictions, rank_of
from mpp.figures.confusion import paint_confusion
from mpp.files import sha256_of
from mpp.methods.classify import load_classifier
from mpp.run.folder import read_metrics
from mpp.run.machine import start_accelerator
from mpp.training.learner import running_mean
from mpp.training.optim import build_optimizer
from recipes.finetune import main as finetune
from recipes.supervised import main as supervised
from tests.helpers import losses, one_and_two_processes, reset_accelerate, without_speeds, write_shards

SHAPE = ["--model.img-size", "16", "--model.embed-dim", "32", "--model.depth", "2", "--model.num-heads", "2"]
SMALL = [
    *("--train.steps", "6", "--train.batch-size", "8", "--train.checkpoint-every", "2", "--optim.warmup-steps", "2"),
    *("--eval.every", "3", "--eval.images", "60", "--train.log-every", "1"),
]


def run(command, output: Path, *options: str) -> dict:
    """Run a command in this process; returns its result.json."""
    reset_accelerate()
    labels = [] if "--eval-only" in options else ["--data.labels", "40"]
    command([*SMALL, *labels, "--output", str(output), *options])
    return json.loads((output / "result.json").read_text())


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """A finished fine-tuning from scratch, in its folder."""
    folder = tmp_path_factory.mktemp("runs") / "tuned"
    run(finetune, folder, *SHAPE)
    return folder


def test_a_fine_tuning_leaves_the_files_of_the_contract(tuned):
    names = {path.name for path in tuned.iterdir()}
    assert names == {
        *("config.toml", "metrics.jsonl", "tensorboard", "checkpoints", "backbone", "classifier", "samples"),
        *("data.json", "result.json", "log.txt"),
    }
    lines = read_metrics(tuned)
    assert {"eval/top1", "eval/top5", "eval/loss", "train/loss", "train/top1"} <= set(lines[2])
    result = json.loads((tuned / "result.json").read_text())
    assert result["eval/top1"] == lines[-1]["eval/top1"]
    assert list((tuned / "tensorboard").rglob("events*"))
    assert (result["labels"], result["classes"], result["eval_images"], result["init"]) == (40, 8, 60, "scratch")
    assert Image.open(next((tuned / "samples").glob("confusion_*.png"))).size > (300, 200)


def test_class_accuracies_add_up_to_the_whole(tuned, tmp_path):
    file = tmp_path / "deep" / "predictions.csv"
    result = run(finetune, tmp_path / "eval", "--init", str(tuned), "--eval-only", "--export-predictions", str(file))
    with file.open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 60
    right = np.array([row["label"] == row["predicted"] for row in rows])
    assert right.mean() == pytest.approx(result["eval/top1"])
    for name, accuracy in result["per_class_top1"].items():
        mine = np.array([row["label"] == name for row in rows])
        assert right[mine].mean() == pytest.approx(accuracy)
    assert rows[0]["image"].startswith("shapes, test, scene")
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)


def test_a_saved_model_measured_again_gives_the_run_s_own_numbers(tuned, tmp_path):
    file = tmp_path / "predictions.parquet"
    export = ["--init", str(tuned), "--eval-only", "--export-predictions", str(file)]
    file.write_text("of somebody else")
    with pytest.raises(UserError, match=r"--export-predictions .* cannot be written \(it exists; --overwrite replaces"):
        run(finetune, tmp_path / "eval", *export)
    assert file.read_text() == "of somebody else"
    again = run(finetune, tmp_path / "eval", *export, "--overwrite")
    result = json.loads((tuned / "result.json").read_text())
    for name in ("eval/top1", "eval/top5", "eval/loss", "per_class_top1"):
        assert again[name] == result[name]
    import pyarrow.parquet

    assert pyarrow.parquet.read_table(file).num_rows == 60


def test_a_folder_with_fewer_classes_in_another_order_is_measured_by_their_names(tuned, tmp_path):
    model = load_classifier(str(tuned))
    rng = np.random.default_rng(0)
    for name in ("star", "disk"):  # the folder's classes 1 and 0 are the model's 3 and 0
        for i in range(3):
            path = tmp_path / "set" / "test" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    options = ["--init", str(tuned), "--eval-only", "--data.path", str(tmp_path / "set"), "--data.eval-split", "test"]
    file = tmp_path / "p.csv"
    result = run(finetune, tmp_path / "eval", *options, "--export-predictions", str(file))
    assert set(result["per_class_top1"]) == {"star", "disk"}
    with file.open() as handle:
        assert [row["label"] for row in csv.DictReader(handle)] == ["disk"] * 3 + ["star"] * 3
    assert model.classes.index("star") == 3

    (tmp_path / "set" / "test" / "star").rename(tmp_path / "set" / "test" / "camel")
    with pytest.raises(UserError, match="classes that the model does not know \\(camel\\)"):
        run(finetune, tmp_path / "eval2", *options)


@pytest.fixture
def photos(tmp_path):
    """A folder of seven pictures without labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(load_images("shapes", "test", size=(16, 16)).read(range(7))):
        image.save(folder / f"photo_{number}.png")
    return folder


def test_pictures_without_labels_are_predicted(tuned, photos, tmp_path):
    reset_accelerate()
    file = tmp_path / "new" / "p.csv"
    found = mpp.predict({"init": str(tuned), "data.path": str(photos), "out": str(file), "top": 3})
    assert found == {"images": 7, "out": str(file)}
    with file.open() as handle:
        rows = list(csv.DictReader(handle))
    ends = ["", "_2", "_3"]
    assert list(rows[0]) == ["image", *(f"{name}{end}" for end in ends for name in ("class", "probability"))]
    assert [row["image"] for row in rows] == [str(photos / f"photo_{number}.png") for number in range(7)]
    model = load_classifier(str(tuned)).eval()
    images = torch.stack([pil_to_tensor(Image.open(row["image"]).convert("RGB")) for row in rows])
    with torch.no_grad():
        likeliest = model(normalise(images)).softmax(-1).topk(3)
    for row, classes, shares in zip(rows, likeliest.indices.tolist(), likeliest.values.tolist(), strict=True):
        assert [row[f"class{end}"] for end in ends] == [model.classes[k] for k in classes]
        assert [float(row[f"probability{end}"]) for end in ends] == pytest.approx(shares, abs=1e-5)


def test_a_table_of_predictions_is_replaced_only_if_asked(tuned, photos, tmp_path):
    options = {"init": str(tuned), "data.path": str(photos), "out": str(tmp_path / "p.parquet")}
    for more, fine in (({}, True), ({}, False), ({"overwrite": True, "top": 50}, True)):
        reset_accelerate()
        if fine:
            mpp.predict(options | more)
        else:
            with pytest.raises(
                UserError, match=r"--out \S+p.parquet cannot be written \(it exists; --overwrite replaces"
            ):
                mpp.predict(options | more)
    assert Dataset.from_parquet(options["out"], keep_in_memory=True).num_columns == 1 + 2 * 8  # as many as classes


def test_labels_give_an_accuracy_and_those_of_others_a_warning(tuned, photos, tmp_path, capsys):
    reset_accelerate()
    run(finetune, tmp_path / "eval", "--init", str(tuned), "--eval-only", "--eval.images", "None")
    measured = json.loads((tmp_path / "eval" / "result.json").read_text())
    reset_accelerate()
    found = mpp.predict({"init": str(tuned), "out": str(tmp_path / "p.csv")})
    assert (found["eval/top1"], found["images"]) == (measured["eval/top1"], measured["eval_images"])
    assert f"accuracy: top 1 {measured['eval/top1']:.1%}" in capsys.readouterr().out
    for name in ("holiday", "work"):
        (photos / name).mkdir()
        next(photos.glob("*.png")).rename(photos / name / "x.png")
    for file in photos.glob("*.png"):
        file.unlink()
    reset_accelerate()
    with pytest.warns(UserWarning, match="holiday, work: no class of the model is called so, and no accuracy"):
        found = mpp.predict({"init": str(tuned), "data.path": str(photos), "out": str(tmp_path / "q.csv")})
    assert found == {"images": 2, "out": str(tmp_path / "q.csv")}


def test_shards_are_predicted_as_the_same_pictures_in_a_folder(tuned, tmp_path):
    shards = write_shards(tmp_path / "shards", 3, 5, damaged=6, label=None)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(load_images("shapes", size=(16, 16)).read(range(15))):
        if number != 6:
            image.save(folder / f"{number:06d}.png")
    found = {}
    for path, batch in ((shards, 2), (folder, 256)):
        reset_accelerate()
        out, sheet = tmp_path / f"{path.name}.parquet", tmp_path / f"{path.name}.png"
        given = {"init": str(tuned), "data.path": str(path), "data.on_error": "skip", "batch_size": batch}
        assert mpp.predict(given | {"out": str(out), "sheet": str(sheet)})["images"] == 14
        found[path.name] = Dataset.from_parquet(str(out), keep_in_memory=True).to_dict()
    names = [f"{name[-6:]}.png" for name in found["shards"].pop("image")]
    assert names == [Path(name).name for name in found["photos"].pop("image")]  # in the order of the shards
    for column, values in found["photos"].items():
        there = found["shards"][column]
        assert there == (pytest.approx(values, abs=1e-5) if column.startswith("probability") else values)
    assert np.array_equal(*(np.asarray(Image.open(tmp_path / f"{name}.png")) for name in found))
    options = {"data.path": str(shards), "init": str(tuned), "out": str(tmp_path / "again.csv")}
    with pytest.raises(UserError, match=r"train-0001.tar: 000006 could not be read .*--data.on-error skip"):
        mpp.predict(options)


def test_every_shard_is_predicted_by_one_process(tmp_path):
    shards = write_shards(tmp_path / "shards", 3, 5, label=None)
    vit, config, names, numbers = ViT(img_size=16, patch_size=4, embed_dim=32, depth=1, num_heads=2), Predict(), {}, []
    for rank in range(2):
        parts = Parts(open_whole(Data(path=str(shards)), (16, 16)))
        rank_of_two = SimpleNamespace(process_index=rank, num_processes=2, device=torch.device("cpu"))
        for batch in batches_of_shards(parts, vit, config, rank_of_two, {}, names):
            numbers += batch["index"].tolist()
    assert len(numbers) == len(set(numbers)) == 15
    assert [names[number][-6:] for number in sorted(numbers)] == [f"{number:06d}" for number in range(15)]


def test_a_measurement_of_pictures_without_labels_writes_predictions_only(tuned, photos, tmp_path):
    file = tmp_path / "p.csv"
    options = ["--init", str(tuned), "--eval-only", "--data.path", str(photos)]
    result = run(finetune, tmp_path / "eval", *options, "--export-predictions", str(file))
    assert (result["eval_images"], "eval/top1" in result) == (7, False)
    assert file.read_text().splitlines()[0] == "index,image,predicted,confidence"
    assert len(file.read_text().splitlines()) == 8
    with pytest.raises(UserError, match="has no labels"):
        run(finetune, tmp_path / "again", *options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--init names the fine-tuned run"),
        ({"init": "x", "data.fraction": 0.5}, "are for training; --data.eval-split names what to predict"),
        ({"init": "x", "out": "p.txt"}, "--out p.txt must end in .parquet or .csv"),
        ({"init": "./x"}, "--init ./x does not exist"),
    ],
)
def test_wrong_options_of_predict_are_named(tmp_path, monkeypatch, options, says):
    monkeypatch.chdir(tmp_path)
    reset_accelerate()
    with pytest.raises(UserError, match=says):
        mpp.predict(options)


def test_two_processes_measure_exactly_what_one_measures(tuned, tmp_path):
    folder = tmp_path / "set" / "test"
    rng = np.random.default_rng(0)
    for number in range(205):
        path = folder / ("disk", "star")[number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    for damaged in (folder / "disk" / "000.png", folder / "star" / "203.png"):
        damaged.write_bytes(b"no image")
    options = ["--init", str(tuned), "--eval-only", "--data.path", str(tmp_path / "set"), "--data.eval-split", "test"]
    options += ["--eval.batch-size", "32", "--data.on-error", "skip"]
    one_and_two_processes(
        finetune,
        "recipes/finetune.py",
        tmp_path,
        lambda name: [*options, "--export-predictions", str(tmp_path / f"{name}.csv")],
    )
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["eval_images"] == 203
    assert len(one["unreadable_images"]) == 2
    assert one.pop("seconds") > 0
    assert two.pop("seconds") > 0
    assert one == two
    assert (tmp_path / "one.csv").read_text() == (tmp_path / "two.csv").read_text()


def test_two_processes_train_as_one(tmp_path):
    options = [
        *SMALL,
        *SHAPE,
        "--data.labels",
        "40",
        "--augment.mixup",
        "0.8",
        "--augment.cutmix",
        "1.0",
        "--augment.randaugment",
        "2",
        "--calibrate",
    ]
    one_and_two_processes(finetune, "recipes/finetune.py", tmp_path, lambda _: options)
    assert losses(read_metrics(tmp_path / "one")) == pytest.approx(losses(read_metrics(tmp_path / "two")), abs=1e-4)
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["temperature"] == pytest.approx(two["temperature"], rel=1e-2)


def test_a_resumed_fine_tuning_equals_one_that_was_never_cut(tmp_path):
    modern = ["--train.average", "0.99", "--augment.mixup", "0.8", "--model.drop-path", "0.2", *SHAPE]
    run(finetune, tmp_path / "whole", *modern)
    run(finetune, tmp_path / "cut", *modern)
    for name in ("result.json", "checkpoints/step_00000006"):
        path = tmp_path / "cut" / name
        path.unlink() if path.is_file() else __import__("shutil").rmtree(path)
    run(finetune, tmp_path / "cut", "--resume", *modern)
    whole, cut = read_metrics(tmp_path / "whole"), read_metrics(tmp_path / "cut")
    assert without_speeds(cut) == without_speeds(whole)


def test_a_run_goes_on_and_says_so_if_its_backbone_was_replaced(backbone, tmp_path, capsys):
    init = Path(shutil.copytree(backbone, tmp_path / "init"))
    began_with = sha256_of(init / "model.safetensors")
    options = ["--init", str(init), "--model.img-size", "16", "--train.steps"]
    run(finetune, tmp_path / "run", *options, "2")
    weights = load_file(init / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in weights.items()}, init / "model.safetensors")
    capsys.readouterr()
    result = run(finetune, tmp_path / "run", *options, "4", "--resume")
    assert capsys.readouterr().out.count("the weights that --init names are others now") == 1
    assert result["init_sha256"] == began_with
    assert run(finetune, tmp_path / "run", *options, "6", "--resume")["init_sha256"] == began_with


def test_the_head_starts_at_zero_and_learns(tmp_path):
    result = run(
        finetune,
        tmp_path / "run",
        *("--model.img-size", "16", "--data.label-column", "colour", "--data.labels", "400", "--eval.images", "300"),
        *("--train.steps", "60", "--train.batch-size", "32", "--eval.every", "60", "--optim.lr", "3e-3"),
    )
    first = read_metrics(tmp_path / "run")[0]["train/loss"]
    assert first == pytest.approx(np.log(8), abs=1e-4)  # all classes alike
    assert result["eval/top1"] > 0.25  # chance is 0.125 +- 0.02


def test_learning_rates_are_tried_on_training_labels_and_the_best_is_used(tmp_path):
    result = run(finetune, tmp_path / "run", *SHAPE, "--optim.lr-grid", "1e-9", "3e-3", "--train.steps", "4")
    assert set(result["lr_grid_top1"]) == {"1e-09", "0.003"}
    assert result["lr"] == float(max(result["lr_grid_top1"], key=result["lr_grid_top1"].get))
    trial = json.loads((tmp_path / "run" / "lr_grid" / "0.003" / "result.json").read_text())
    assert trial["eval/top1"] == result["lr_grid_top1"]["0.003"]
    assert len(read_metrics(tmp_path / "run")) == 4
    assert list((tmp_path / "run" / "tensorboard").rglob("events*"))  # its own, beside those of the trials


def test_a_rate_cannot_be_chosen_with_one_label_a_class(tmp_path):
    reset_accelerate()
    with pytest.raises(
        UserError, match=r"--optim\.lr-grid chooses on held-out training labels, and one a class leaves"
    ):
        finetune([*SMALL, *SHAPE, "--output", str(tmp_path), "--data.labels", "8", "--optim.lr-grid", "1e-3", "1e-2"])


def test_a_rate_at_which_training_diverges_loses_to_the_others(tmp_path, capsys):
    grid = ["--optim.name", "sgd", "--optim.clip-norm", "0", "--optim.lr-grid", "1e-3", "1e20"]
    result = run(finetune, tmp_path / "run", *SHAPE, *grid)
    assert result["lr"] == 1e-3
    assert result["lr_grid_top1"]["1e+20"] == 0
    assert "--optim.lr 1e+20 is too high: the loss is" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"diverged at every rate of --optim.lr-grid \(1e\+20, 1e\+25\)"):
        run(finetune, tmp_path / "run2", *SHAPE, *grid[:-2], "1e20", "1e25")


def test_a_size_that_cuts_patches_is_refused_with_those_that_do_not(tuned, tmp_path):
    for more in (["--eval-only"], []):
        with pytest.raises(UserError, match=r"--model.img-size 30 is not a multiple of the patch size .* 28, 32"):
            run(finetune, tmp_path / "run", "--init", str(tuned), "--model.img-size", "30", *more)


def test_a_backbone_trained_at_16_fine_tunes_at_24(backbone, tmp_path):
    run(finetune, tmp_path / "run", "--init", str(backbone), "--model.img-size", "24")
    assert load_classifier(str(tmp_path / "run")).vit.grid == (6, 6)
    vit = ViT.from_pretrained(tmp_path / "run" / "backbone")
    assert vit.pos_embed.shape == (1, 37, 32)


def test_a_backbone_at_its_own_size_keeps_its_features(backbone):
    images = torch.randn(2, 3, 16, 16)
    before, after = ViT.from_pretrained(backbone).eval(), ViT.from_pretrained(backbone, img_size=16).eval()
    assert torch.equal(before(images), after(images))
    model = Classifier(after, ["a", "b"])
    assert torch.equal(model(images), torch.zeros(2, 2))


def test_a_shape_that_is_not_the_backbones_is_refused(backbone, tmp_path):
    with pytest.raises(UserError, match=r"--model\.depth is only for --init scratch"):
        run(finetune, tmp_path / "run", "--init", str(backbone), "--model.depth", "3")


def test_supervised_pretraining_exports_a_backbone_that_fine_tunes(tmp_path):
    result = run(supervised, tmp_path / "sup", *SHAPE, "--data.label-column", "colour")
    assert result["command"] == "supervised"
    model = load_classifier(str(tmp_path / "sup"))
    assert [type(layer).__name__ for layer in model.head] == ["Linear", "Tanh", "Linear"]
    tuned = run(finetune, tmp_path / "fine", "--init", str(tmp_path / "sup"))
    assert tuned["backbone_parameters"] == result["backbone_parameters"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--eval-only"], "--eval-only measures a fine-tuned model; name its run with --init"),
        (["--eval-only", "--init", "x", "--data.labels", "9"], "--data.labels and --model.pool are for training"),
        (["--export-predictions", "p.txt"], "must end in .parquet or .csv"),
        (["--optim.lr-grid", "0.1", "-1"], "--optim.lr-grid"),
        (["--augment.mixup", "-1"], "--augment.mixup -1.0 must not be negative"),
        (["--augment.mixup", "0.8", "--train.batch-size", "7"], "mix pairs of images"),
        (["--train.average", "1"], "--train.average 1.0 must be at least 0 and below 1"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, says):
    with pytest.raises(UserError, match=says):
        run(finetune, tmp_path / "run", *SHAPE, *options)


def test_predictions_that_cannot_be_written_are_told_before_training(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"--export-predictions .*/file/p.csv cannot be written"):
        run(finetune, tmp_path / "run", *SHAPE, "--export-predictions", str(tmp_path / "file" / "p.csv"))
    assert not (tmp_path / "run").exists()


def test_a_set_with_one_split_is_measured_whole(tuned, tmp_path):
    for name in ("star", "disk"):
        path = tmp_path / "set" / name / "0.png"
        path.parent.mkdir(parents=True)
        Image.new("RGB", (16, 16)).save(path)
    result = run(finetune, tmp_path / "eval", "--init", str(tuned), "--eval-only", "--data.path", str(tmp_path / "set"))
    assert result["eval_images"] == 2


@pytest.mark.filterwarnings("error")
def test_any_class_name_can_be_drawn():
    found = Predictions(*np.array([[0, 1], [0, 1], [0, 1]]), np.ones(2), np.zeros(2), np.zeros(2))
    assert paint_confusion(found.confusion, ["a$_$", "猫"])["confusion"].shape[:2] == (1, 3)
    assert paint_confusion(found.confusion, [str(k) for k in range(1001)]) == {}


def test_predictions_are_measured_as_scikit_learn_does():
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(500, 7)), rng.integers(0, 7, 500)
    rank = rank_of(torch.from_numpy(labels), torch.from_numpy(scores)).numpy()
    found = Predictions(np.arange(500), labels, scores.argmax(1), np.ones(500), rank, np.zeros(500))
    assert found.metrics()["top1"] == pytest.approx((scores.argmax(1) == labels).mean())
    assert found.metrics()["top5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert np.array_equal(found.confusion(7), confusion_matrix(labels, scores.argmax(1)))


def test_equal_scores_and_no_numbers_are_not_told_right():
    labels = torch.tensor([0, 1, 2])
    assert rank_of(labels, torch.zeros(3, 3)).tolist() == [0, 1, 2]
    assert rank_of(labels, torch.full((3, 3), torch.nan)).tolist() == [3, 3, 3]


def test_mixed_images_and_labels_share_their_weights():
    images = torch.arange(6.0)[:, None, None, None].expand(6, 3, 8, 8)
    labels = F.one_hot(torch.arange(6)).float()
    for mixup, cutmix in ((0.8, 0.0), (0.0, 1.0)):
        mixed_images, weights = mixed(images, labels, mixup, cutmix, np.random.default_rng(3))
        assert torch.allclose(weights.sum(1), torch.ones(6))
        # each image stands for its number, so the weights say what the mean of the mixture is
        assert torch.allclose(mixed_images.mean((1, 2, 3)), weights @ torch.arange(6.0), atol=1e-5)
        pairs = weights.reshape(3, 2, 3, 2)
        assert torch.allclose(pairs, pairs * torch.eye(3)[:, None, :, None])  # neighbours alone are mixed


def test_randaugment_is_a_function_of_the_samples_generator():
    image = np.random.default_rng(0).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    state = torch.random.get_rng_state()
    views = [randaugmented(image, 2, np.random.default_rng(seed)) for seed in range(8)]
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(np.array_equal(randaugmented(image, 2, np.random.default_rng(i)), views[i]) for i in range(8))
    assert len({view.tobytes() for view in views}) > 4


def test_layers_near_the_input_learn_slower():
    vit = ViT("nano", img_size=16, patch_size=4, embed_dim=32, depth=3, num_heads=2)
    model = Classifier(vit, ["a", "b"])
    optimizer = build_optimizer(model, FineTuneOptim(lr=1.0, layer_decay=0.5), batch_size=32)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert [rates[id(block.mlp.fc1.weight)] for block in vit.blocks] == [0.125, 0.25, 0.5]
    assert rates[id(vit.pos_embed)] == rates[id(vit.patch_embed.weight)] == 0.0625
    assert rates[id(model.head[-1].weight)] == rates[id(vit.norm.weight)] == 1.0


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "muon"])
def test_every_parameter_learns_once_and_only_linear_weights_decay(name):
    vit = ViT("nano", img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    optimizer = build_optimizer(vit, Optim(name=name, weight_decay=0.3), batch_size=32)
    decay = [(p, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(id(p) for p, _ in decay) == sorted(id(p) for p in vit.parameters())
    linear = {id(m.weight) for m in vit.modules() if isinstance(m, torch.nn.Linear)}
    assert all((share == 0.3) == (id(p) in linear) for p, share in decay)


def test_the_running_mean_follows_its_definition():
    reset_accelerate()
    model = torch.nn.Linear(1, 1, bias=False)
    mean = running_mean(model, 0.5, start_accelerator("fp32"))
    expected, seen = None, [3.0, 5.0, 9.0, 1.0]
    for n, value in enumerate(seen):
        torch.nn.init.constant_(model.weight, value)
        mean.update_parameters(model)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert mean.module.weight.item() == pytest.approx(expected)
