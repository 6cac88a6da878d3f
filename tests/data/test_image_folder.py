import pytest
import torch
from PIL import Image

from batchfree import DataError
from batchfree.data.image_folder import ImageFolder, Lighting, eval_transform, train_transform
from batchfree.train import Config, fit
from batchfree.train.config import DataConfig
from batchfree.train.data import build_data

COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


@pytest.fixture
def root(tmp_path):
    """Two classes, 6 images each to train and 3 to validate, in three file formats and modes."""
    for split, count in (("train", 6), ("val", 3)):
        for name, colour in COLOURS.items():
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = Image.new("RGB", (40 + i, 30), colour)
                if i == 1:
                    image.convert("RGBA").save(folder / f"{i}.png")
                else:
                    image.save(folder / f"{i}.{'JPEG' if i % 2 else 'jpg'}")
            (folder / "notes.txt").write_text("no image")
    return tmp_path


def test_images_and_classes(root):
    data = ImageFolder(root, "val", size=16)
    assert data.classes == ["blue", "red"]
    assert [label for _, label in data] == [0, 0, 0, 1, 1, 1]
    image, _ = data[0]
    assert image.shape == (3, 16, 16)
    assert image.dtype == torch.float32
    blue = (torch.tensor([0.0, 0.0, 1.0]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(image.mean((1, 2)), blue, atol=0.05, rtol=0)


def test_augmentation_follows_its_seed_alone(root):
    data = ImageFolder(root, "train", size=16)
    before = torch.get_rng_state()
    first = data.draw(0, 7)[0]
    torch.rand(3)
    assert torch.equal(first, data.draw(0, 7)[0])
    assert not torch.equal(first, data.draw(0, 8)[0])
    torch.set_rng_state(before)


def test_evaluation_keeps_the_aspect_and_the_centre():
    image = Image.new("L", (448, 256))
    image.paste(255, (96, 0, 352, 256))  # the square in the middle
    out = eval_transform(224)(image.convert("RGB"))
    assert out.shape == (3, 224, 224)
    torch.testing.assert_close(out, out[:, :1, :1].expand_as(out))


def test_training_crops_are_of_the_size(root):
    assert train_transform(24)(Image.new("RGB", (50, 20))).shape == (3, 24, 24)


def test_lighting_shifts_along_the_principal_colours():
    torch.manual_seed(0)
    shifts = torch.stack([Lighting(0.1)(torch.zeros(3, 1, 1)).flatten() for _ in range(4000)])
    vectors = torch.tensor(
        [[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]]
    )
    covariance = vectors @ torch.diag(torch.tensor([0.2175, 0.0188, 0.0045]) * 0.1) ** 2 @ vectors.T
    torch.testing.assert_close(shifts.T.cov(), covariance, atol=2e-5, rtol=0.1)


def test_a_run_on_a_folder(root):
    config = Config(batch_size=4).replace(
        model={"width": 4},
        data={"kind": "image_folder", "root": str(root), "size": 16, "eval_batch_size": 4},
        trainer={"max_steps": None, "max_epochs": 2, "accelerator": "cpu"},
    )
    result = fit(config)
    assert [p["step"] for p in result.curve] == [3, 6]  # 12 images in batches of 4: once an epoch
    assert result.model.fc.out_features == 2
    assert fit(config).curve == result.curve


def test_a_validation_subset_holds_every_class(root):
    config = DataConfig(kind="image_folder", root=str(root), size=16, val_samples=2)
    assert [label for _, label in build_data(config, 0).validation] == [0, 1]


def remove(folder):
    for path in folder.rglob("*.*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.rename(r.with_name("gone")), "data folder '.*' does not exist"),
        (lambda r: (r / "val").rename(r / "test"), "has no val/: it holds test, train; images"),
        (lambda r: remove(r / "val" / "red"), "class folder '.*val/red' holds no images"),
        (lambda r: (r / "val" / "red").rename(r / "val" / "rot"), "lacks 'red'.*same class"),
        (lambda r: (r / "train" / "red").rename(r / "red"), "has 'red' besides"),
    ],
)
def test_a_folder_that_does_not_fit_is_named(root, damage, message):
    damage(root)
    config = DataConfig(kind="image_folder", root=str(root), size=16)
    with pytest.raises(DataError, match=message) as caught:
        build_data(config, 0)
    assert "\n" not in str(caught.value)


def test_an_empty_split(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match="has no class folders; images belong in"):
        ImageFolder(tmp_path, "train")


@pytest.mark.parametrize("cut", [0, 300])
def test_a_damaged_image_is_named(root, cut):
    path = root / "val" / "red" / "0.jpg"
    path.write_bytes(path.read_bytes()[:cut])
    data = ImageFolder(root, "val", size=16)
    with pytest.raises(DataError, match=r"val/red/0.jpg' cannot be read .*replace or remove"):
        data[3]
