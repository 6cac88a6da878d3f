"""Architectures of torchvision and timm: converted, run, differentiated, then independent."""

import csv
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "convert_zoo.py"
TABLE = ROOT / "results" / "convert-zoo.csv"
if not TOOL.exists():
    pytest.skip("an installed package has no tools", allow_module_level=True)
_spec = importlib.util.spec_from_file_location("convert_zoo", TOOL)
convert_zoo = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(convert_zoo)

# Norm layers written into the model code, activations inside the norm, in place, functional;
# detectors, segmentation, video; norms before convolutions, of vectors, of tokens.
MODELS = [
    "torchvision:vgg11_bn",
    "torchvision:densenet121",
    "torchvision:googlenet",
    "torchvision:inception_v3",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_small",
    "torchvision:shufflenet_v2_x0_5",
    "torchvision:mnasnet0_5",
    "torchvision:r3d_18",
    "torchvision:deeplabv3_mobilenet_v3_large",
    "torchvision:fcn_resnet50",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn",
    "torchvision:retinanet_resnet50_fpn_v2",
    "timm:test_efficientnet",
    "timm:test_resnet",
    "timm:levit_128s",
    "timm:ghostnet_050",
    "timm:mobileone_s0",
    "timm:hardcorenas_a",
]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_it_converts_runs_and_no_sample_depends_on_another(name):
    row = convert_zoo.convert_one(name)
    assert row["verdict"] == "independent", row
    assert row["converted"] == row["batch_norms"] > 0
    assert row["kept"] == 0
    assert row["problem"] == ""


def rows():
    if not TABLE.exists():
        return []
    with TABLE.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows(), ids=lambda row: row["model"])
def test_a_model_of_the_table_holds_or_says_why_not(row):
    if row["verdict"] in ("independent", "runs, not audited"):
        assert int(row["converted"]) + int(row["kept"]) >= 1
        assert row["converted"] == row["batch_norms"] or row["problem"]
    else:
        assert row["verdict"] in ("coupled", "failed", "not finished")
        assert row["problem"]


def test_models_stand_there_once():
    names = [row["model"] for row in rows()]
    assert len(names) == len(set(names))
