"""Mask R-CNN's training step against torchvision's own, and what loading costs beside it.

    python tools/detection_speed.py [--height 800 --width 1333] [--batch 2] [--rounds 5] \\
        [--device cpu] [--precision float32] [--threads 2] [--workers 2] > speed.json

In one process and in turns: a step (forward, backward, SGD) of `maskrcnn_resnet50_fpn` with frozen
BatchNorm, of ours with the same norm and layout, and of ours with GN everywhere, on the same random
images of the given size. Then a short training on JPEG images of that size with polygons: the share
of its time that it waits for the next batch of so many workers, and, beside it, the seconds that a
batch takes to arrive with nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn


def main() -> None:
    """Measures and prints the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--height", type=int, default=800)
    parser.add_argument("--width", type=int, default=1333)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--images", type=int, default=32, help="to load, written as JPEG first")
    parser.add_argument("--loop", type=int, default=10, help="steps of the training that loads")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from batchfree.bench.origin import here

    seconds, busy = steps(options)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    loading, waiting = load(options)
    theirs = medians.get("torchvision, frozen BN", math.nan)
    processor = statistics.median(busy.get("torchvision, frozen BN", [math.nan]))
    ratios = zip(
        seconds.get("ours, frozen BN", []), seconds.get("torchvision, frozen BN", []), strict=False
    )
    found = {
        "origin": here(f"python tools/detection_speed.py {' '.join(sys.argv[1:])}").to_json(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "settings": vars(options),
        "step_seconds": {n: [round(t, 4) for t in times] for n, times in seconds.items()},
        "step_median": medians,
        "ratio_to_torchvision": {n: round(m / theirs, 3) for n, m in medians.items()},
        "ratio_by_round": [round(a / b, 3) for a, b in ratios],
        "processor_seconds": {n: [round(t, 4) for t in times] for n, times in busy.items()},
        "processor_ratio_to_torchvision": {
            n: round(statistics.median(t) / processor, 3) for n, t in busy.items()
        },
        "loading_seconds_per_batch": loading,
        "waiting_share_of_step": round(waiting, 4),
    }
    print(json.dumps(found, indent=1))


def steps(
    options: argparse.Namespace,
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of each round's step, the networks in turns, by the clock and of the processor.

    On a machine that others use too the processor's are the ones to compare.
    """
    images, targets = scene(options)
    size = {"min_size": options.height, "max_size": options.width}
    runs = {
        name: stepper(NETWORKS[name](size), images, targets, options) for name in options.networks
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    busy: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(options.rounds + 1):
        # In another order each round, so that none always follows the same other.
        names = list(runs)[number % len(runs) :] + list(runs)[: number % len(runs)]
        for name in names:
            processor = time.process_time()
            elapsed = runs[name]()
            if number:  # the first warms up
                times[name].append(elapsed)
                busy[name].append(time.process_time() - processor)
    return times, busy


def scene(options: argparse.Namespace) -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    """Random images with eight rectangles each."""
    height, width = options.height, options.width
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for _ in range(options.batch):
        images.append(torch.rand(3, height, width, generator=generator))
        corners = torch.rand(8, 2, generator=generator) * torch.tensor([width / 2, height / 2])
        boxes = torch.cat([corners, corners + torch.tensor([width / 4, height / 4])], 1)
        masks = torch.zeros(8, height, width, dtype=torch.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
            mask[y1:y2, x1:x2] = 1
        labels = torch.randint(1, 91, (8,), generator=generator)
        targets.append({"boxes": boxes, "labels": labels, "masks": masks})
    device = options.device
    moved = [{k: v.to(device) for k, v in t.items()} for t in targets]
    return [i.to(device) for i in images], moved


def torchvisions(size: dict[str, Any]) -> nn.Module:
    """torchvision's, with the frozen norms that it builds around pretrained weights."""
    from torchvision.models import resnet50
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d

    body = resnet50(norm_layer=FrozenBatchNorm2d)
    return MaskRCNN(_resnet_fpn_extractor(body, 3), 91, **size)


def ours_frozen(size: dict[str, Any]) -> nn.Module:
    """The same network from this package; the same stages train."""
    from batchfree import norm_layer
    from batchfree.models import Norms, mask_rcnn

    norms = Norms(norm_layer("frozen_bn"))
    return mask_rcnn(
        "resnet50", 91, norms, box_head="2fc", freeze_at=2, initialization="torchvision", **size
    )


def ours_gn(size: dict[str, Any]) -> nn.Module:
    """The paper's network: GN everywhere, the 4conv1fc head."""
    from batchfree.models import mask_rcnn

    return mask_rcnn("resnet50", 91, freeze_at=2, **size)


NETWORKS: dict[str, Callable[[dict[str, Any]], nn.Module]] = {
    "torchvision, frozen BN": torchvisions,
    "ours, frozen BN": ours_frozen,
    "ours, GN, 4conv1fc": ours_gn,
}


def stepper(
    model: nn.Module, images: Any, targets: Any, options: argparse.Namespace
) -> Callable[[], float]:
    """A function that takes a step and returns its seconds."""
    take = trainer(model, options)

    def step() -> float:
        torch.manual_seed(0)
        synchronize(options.device)
        start = time.perf_counter()
        take(images, targets)
        synchronize(options.device)
        return time.perf_counter() - start

    return step


def trainer(model: nn.Module, options: argparse.Namespace) -> Callable[[Any, Any], None]:
    """A function that takes a step on images and targets."""
    device = options.device
    model = model.to(device).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9)
    half = options.precision == "bfloat16"

    def take(images: Any, targets: Any) -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return take


def synchronize(device: str) -> None:
    """Waits for the device."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def load(options: argparse.Namespace) -> tuple[float, float]:
    """Seconds a batch takes to arrive, and the share of a training's time spent in waiting."""
    from batchfree.data.coco import CocoDataset
    from batchfree.data.detection import detection_transform
    from batchfree.data.detection_batches import AspectRatioBatches, detection_loader

    pin = torch.device(options.device).type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        write_set(Path(folder), options)
        data = CocoDataset(folder, "train", transforms=detection_transform(flip=0.5))

        def arriving(batches: int) -> Any:
            sampler = AspectRatioBatches(data.sizes, options.batch, num_batches=batches)
            return iter(detection_loader(data, sampler, options.workers, pin))

        warm = 2 * max(1, options.workers)  # what the workers have ready once they run
        count = warm + -(-options.images // options.batch) * 2
        batches = arriving(count)
        for _ in range(warm):
            next(batches)
        start = time.perf_counter()
        left = sum(1 for _ in batches)
        alone = (time.perf_counter() - start) / left

        size = {"min_size": options.height, "max_size": options.width}
        take = trainer(ours_frozen(size), options)
        batches, waited, started = arriving(options.loop + 2), 0.0, 0.0
        for number in range(options.loop + 2):
            if number == 2:  # the workers have started, the step is warm
                waited, started = 0.0, time.perf_counter()
            before = time.perf_counter()
            images, targets = next(batches)
            waited += time.perf_counter() - before
            device = options.device
            kept = ("boxes", "labels", "masks")
            take(
                [i.to(device, non_blocking=True) for i in images],
                [{k: t[k].to(device, non_blocking=True) for k in kept} for t in targets],
            )
            synchronize(device)
        return alone, waited / (time.perf_counter() - started)


def write_set(folder: Path, options: argparse.Namespace) -> None:
    """A COCO set of JPEG photographs, with eight polygons of forty points each."""
    from sklearn.datasets import load_sample_images

    (folder / "annotations").mkdir()
    (folder / "train2017").mkdir()
    size = (options.width, options.height)
    photos = [Image.fromarray(p).resize(size) for p in load_sample_images().images]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    generator = np.random.default_rng(0)
    for number in range(1, options.images + 1):
        name = f"{number:012}.jpg"
        photos[number % len(photos)].save(folder / "train2017" / name, quality=90)
        record = {"id": number, "file_name": name, "height": size[1], "width": size[0]}
        images.append(record)
        for _ in range(8):
            x, y = generator.random(2) * [size[0] * 0.6, size[1] * 0.6]
            w, h = size[0] / 4, size[1] / 4
            angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
            points = np.stack([x + w / 2 * (1 + np.cos(angle)), y + h / 2 * (1 + np.sin(angle))])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h * np.pi / 4,
                    "iscrowd": 0,
                    "segmentation": [points.T.ravel().tolist()],
                }
            )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "thing"}],
    }
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(content))


if __name__ == "__main__":
    main()
