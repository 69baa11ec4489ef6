"""`mpp embed`: a table of features that can be cut, and the pictures beside it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import mpp
from mpp.commands import embed as embedding
from mpp.data import parts as reading
from mpp.data.augment import normalise
from mpp.errors import UserError
from mpp.figures.components import component_colours
from tests.helpers import launch_file, one_line, put, reset_accelerate, slopes, two_processes, write_shards


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty pictures in two classes, each another grey."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        put(folder / ("cat", "dog")[number % 2] / f"{number:02}.png", 6 * number)
    slopes(16, 16).save(folder / "cat" / "slopes.png")
    return folder


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of eight images, so that forty are several."""
    monkeypatch.setattr(reading, "_IMAGES", 8)
    reset_accelerate()


def embed(backbone, data, out, **options):
    """Run the command; names of options with `_` for the point."""
    return mpp.embed({"init": str(backbone), "data.path": str(data), "out": str(out), "batch_size": 5} | options)


def expected(backbone, names):
    """Features of image files by the model itself: the mean of the patch tokens."""
    vit = mpp.ViT.from_pretrained(backbone).eval()
    pixels = np.stack([np.asarray(Image.open(name).resize((16, 16), Image.Resampling.BICUBIC)) for name in names])
    with torch.no_grad():
        return vit(normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2)))[:, 1:].mean(1).numpy()


def test_a_row_an_image_with_its_name_its_label_and_the_features_of_the_model(backbone, photos, tmp_path):
    out = tmp_path / "a.parquet"
    assert embed(backbone, photos, out) == {"images": 41, "shape": [32], "out": str(out)}
    table = pq.read_table(out).to_pydict()
    assert list(table) == ["image", "label", "embedding"]
    assert table["image"] == sorted(map(str, photos.rglob("*.png")))
    assert table["label"] == [name.split("/")[-2] for name in table["image"]]
    np.testing.assert_allclose(table["embedding"], expected(backbone, table["image"]), atol=2e-2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.about.json", "a.parquet"]


def test_npy_has_the_same_numbers_by_any_workers_and_the_names_beside_it(backbone, photos, tmp_path):
    embed(backbone, photos, tmp_path / "a.parquet")
    embed(backbone, photos, tmp_path / "a.npy", **{"data.workers": 2})
    table = pq.read_table(tmp_path / "a.parquet").to_pydict()
    assert np.array_equal(np.load(tmp_path / "a.npy"), np.array(table["embedding"], np.float32))
    lines = (tmp_path / "a.csv").read_text().splitlines()
    assert lines[:2] == ["image,label", f"{table['image'][0]},cat"]
    assert len(lines) == 42


def test_all_patches_and_another_block_are_written(backbone, photos, tmp_path):
    embed(backbone, photos, tmp_path / "a.npy", pool="patches", layer="1")
    embed(backbone, photos, tmp_path / "a.parquet", pool="patches", layer="1", overwrite=True)
    array = np.load(tmp_path / "a.npy")
    assert array.shape == (41, 16, 32)
    assert np.array_equal(array, np.array(pq.read_table(tmp_path / "a.parquet")["embedding"].to_pylist(), np.float32))
    embed(backbone, photos, tmp_path / "mean.npy", layer="1")
    np.testing.assert_allclose(array.mean(1), np.load(tmp_path / "mean.npy"), atol=1e-5)


def test_a_cut_run_goes_on_and_writes_the_same_file(backbone, photos, tmp_path, monkeypatch, capsys):
    embed(backbone, photos, tmp_path / "whole.parquet")
    out = tmp_path / "cut.parquet"
    computed = []

    def cut_off(vit, images, *rest):
        computed.append(len(images))
        if sum(computed) > 20:
            raise KeyboardInterrupt
        return whole(vit, images, *rest)

    whole = embedding.embeddings
    monkeypatch.setattr(embedding, "embeddings", cut_off)
    with pytest.raises(KeyboardInterrupt):
        embed(backbone, photos, out)
    left = sorted(path.name for path in (tmp_path / "cut.parquet.parts").iterdir())
    assert left == ["part-00000000.parquet", "part-00000001.parquet", "plan.json"]
    assert not out.exists()
    computed[:] = [-100]
    reset_accelerate()
    embed(backbone, photos, out)
    assert sum(computed) == -100 + 41 - 16  # what was there was not computed again
    assert "2 parts are there" in capsys.readouterr().out
    assert pq.read_table(out) == pq.read_table(tmp_path / "whole.parquet")
    assert not (tmp_path / "cut.parquet.parts").exists()


def test_parts_of_another_block_are_not_mixed_in(backbone, photos, tmp_path, capsys):
    folder = tmp_path / "a.parquet.parts"
    embed(backbone, photos, tmp_path / "a.parquet", layer="1")
    folder.mkdir()
    (folder / "plan.json").write_text("{}")
    (folder / "part-00000000.parquet").write_bytes(b"of another run")
    embed(backbone, photos, tmp_path / "a.parquet", overwrite=True)
    assert "parts of other images or another model go" in capsys.readouterr().out
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 41


def test_shards_are_embedded_without_labels_alike_by_two_processes(backbone, tmp_path):
    shards = write_shards(tmp_path / "shards", 3, 4, label=None)
    assert embed(backbone, shards, tmp_path / "a.parquet", pca=True, projector=True)["images"] == 12
    table = pq.read_table(tmp_path / "a.parquet")
    assert table.column_names == ["image", "embedding"]
    assert table["image"][4].as_py().endswith("train-0001.tar: 000004")
    assert (tmp_path / "a.pca.png").exists()
    words = ["embed", str(backbone), str(shards), "--out", str(tmp_path / "two.parquet"), "--batch-size", "5"]
    done = launch_file("mpp/__main__.py", *words, launcher=two_processes())
    assert done.returncode == 0, done.stderr
    two = pq.read_table(tmp_path / "two.parquet")
    assert two["image"] == table["image"]
    np.testing.assert_allclose(two["embedding"].to_pylist(), table["embedding"].to_pylist(), atol=1e-6)


def test_an_unreadable_image_is_left_out_and_told(backbone, photos, tmp_path, capsys):
    (photos / "cat" / "03.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    try:
        found = embed(
            backbone,
            photos,
            tmp_path / "a.parquet",
            **{"data.on_error": "skip"},
            similar=str(photos / "dog" / "39.png"),
        )
    finally:
        (photos / "cat" / "03.png").unlink()
    assert found["images"] == 41
    assert "1 images in" in capsys.readouterr().out
    assert "03.png" in next(iter(json.loads((tmp_path / "a.about.json").read_text())["unreadable"]))


def test_the_nearest_are_named_by_cosine_and_painted(backbone, photos, tmp_path, capsys):
    out = tmp_path / "a.parquet"
    embed(backbone, photos, out)
    asked = str(photos / "dog" / "21.png")
    capsys.readouterr()
    embed(backbone, photos, out, similar=asked)
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split("  ") for line in lines if line.startswith("  ")]
    table = pq.read_table(out).to_pydict()
    x = np.array(table["embedding"])
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosines = x @ x[table["image"].index(asked)]
    best = [row for row in np.argsort(-cosines, kind="stable") if table["image"][row] != asked][:12]
    assert [name for *_, name in shown] == [table["image"][row] for row in best]
    assert shown[0][1] == f"{cosines[best[0]]:.3f} {table['label'][best[0]]}"
    assert Image.open(tmp_path / "a.similar.png").size[0] > 500
    outside = tmp_path / "copy.png"
    outside.write_bytes((photos / "dog" / "21.png").read_bytes())
    embed(backbone, photos, out, similar=str(outside))  # a file that is not of the set
    assert f"  1.000 dog  {asked}" in capsys.readouterr().out
    with pytest.raises(UserError, match="neither an image file nor the name"):
        embed(backbone, photos, out, similar="nothing.png")


def test_the_projector_has_vectors_names_labels_and_thumbnails(backbone, photos, tmp_path):
    embed(backbone, photos, tmp_path / "a.npy", projector=True)
    [sprite] = (tmp_path / "a.projector").rglob("sprite.png")
    assert Image.open(sprite).size == (7 * 48, 7 * 48)  # 41 of 7 x 7 places
    lines = sprite.with_name("metadata.tsv").read_text().splitlines()
    assert lines[0] == "image\tlabel"
    assert len(lines) == 42
    vectors = np.loadtxt(sprite.with_name("tensors.tsv"), delimiter="\t")
    np.testing.assert_allclose(vectors, np.load(tmp_path / "a.npy"), rtol=1e-5)


def test_components_follow_what_varies_and_agree_over_images():
    tokens = torch.zeros(2, 4, 8)
    tokens[0, :, 5] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    tokens[1, :, 5] = torch.tensor([3.0, 2.0, 1.0, 0.0])
    colours = component_colours(tokens, (2, 2))
    assert colours.shape == (2, 3, 2, 2)
    red = colours[:, 0].flatten(1).tolist()
    assert red[0] == sorted(red[0])
    assert red[1] == red[0][::-1]
    assert (colours[:, 1:] == 128).all()  # nothing else varies


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": "a.csv"}, "--out a.csv must end in .parquet or .npy"),
        ({"layer": "3"}, "--layer 3 is none of: last, 1 to 2"),
        ({"layer": "all"}, "--layer all is none of: last, 1 to 2"),
        ({"img_size": 18}, "--img-size 18 is not a multiple of the patch size"),
        ({"pool": "patches", "projector": True}, "--projector compares whole images"),
        ({"data.eval_split": "test"}, "--data.split names what to embed"),
        ({"init": "scratch"}, "--init names the run or backbone"),
    ],
)
def test_options_that_cannot_work_are_told_in_one_line(backbone, photos, tmp_path, options, says):
    with pytest.raises(UserError) as error:
        embed(backbone, photos, **({"out": tmp_path / "a.parquet"} | options))
    assert says in one_line(error)


def test_a_file_that_is_there_is_kept_or_told_what_differs(backbone, photos, tmp_path):
    out = tmp_path / "a.parquet"
    embed(backbone, photos, out)
    before = out.stat().st_mtime_ns
    embed(backbone, photos, out)
    assert out.stat().st_mtime_ns == before
    with pytest.raises(UserError, match=r"made otherwise: pool mean, now cls; --overwrite replaces it"):
        embed(backbone, photos, out, pool="cls")
    embed(backbone, photos, out, pool="cls", overwrite=True)
    assert out.stat().st_mtime_ns != before


def test_a_full_disk_is_told_with_what_goes_on(backbone, photos, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(embedding.Writer, "add", full)
    with pytest.raises(UserError) as error:
        embed(backbone, photos, tmp_path / "a.parquet")
    says = (
        "(No space left on device); make room on the disk, and the same command goes on with the parts that are there"
    )
    assert one_line(error) == f"{tmp_path / 'a.parquet.parts'} can no longer be written {says}"
