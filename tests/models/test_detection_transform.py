import pytest
import torch
from detection_scenes import SMALL
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from batchfree import Groups, norm_layer
from batchfree.models import Norms, mask_rcnn
from batchfree.models.detection_transform import DetectionTransform

SETTINGS = ((64, 96), 128, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4])


def thin(height, width):
    mask = torch.zeros(1, height, width, dtype=torch.uint8)
    mask[:, :, :] = 1
    return torch.rand(3, height, width), {
        "boxes": torch.tensor([[0.0, 0.0, width, height]]),
        "labels": torch.tensor([1]),
        "masks": mask,
    }


@pytest.mark.parametrize(
    ("height", "width", "scaled"),
    [(3, 2000, (1, 128)), (2000, 3, (128, 1)), (1, 129, (1, 128)), (1, 100_000, (1, 128))],
)
def test_no_side_of_a_thin_image_comes_to_nothing(height, width, scaled):
    image, target = thin(height, width)
    for training in (True, False):
        transform = DetectionTransform(*SETTINGS).train(training)
        images, (seen,) = transform([image], [target])
        assert images.image_sizes == [scaled]
        assert seen["masks"].shape == (1, *scaled)
        expected = [0, 0, scaled[1], scaled[0]]
        assert torch.allclose(seen["boxes"], torch.tensor([expected]).float())
        assert transform.fixed_size is None  # the next image is scaled as ever


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (1, 128), (2, 200), (2, 256), (7, 500)])
@pytest.mark.parametrize("training", [True, False])
def test_other_images_are_scaled_as_by_torchvision(shape, training):
    image, target = thin(*shape)
    theirs = GeneralizedRCNNTransform(*SETTINGS).train(training)
    mine = DetectionTransform.like(theirs)
    assert (mine.training, repr(mine)) == (
        training,
        repr(theirs).replace("GeneralizedRCNN", "Detection"),
    )
    out = []
    for transform in (theirs, mine):
        torch.manual_seed(0)
        images, (seen,) = transform([image], [target])
        out.append((images.image_sizes, images.tensors, seen["boxes"], seen["masks"]))
    assert out[0][0] == out[1][0]
    for a, b in zip(out[0][1:], out[1][1:], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3)])
def test_a_detector_trains_on_a_thin_image_and_finds_things_in_it(size):
    torch.manual_seed(0)
    gn = norm_layer("gn", Groups(channels_per_group=4))
    model = mask_rcnn("resnet_small", 3, Norms.everywhere(gn), **SMALL)
    image, target = thin(*size)
    losses = model.train()([image], [target])
    assert all(loss.isfinite() for loss in losses.values())
    (found,) = model.eval()([image])
    assert found["boxes"].isfinite().all()
    assert found["masks"].shape[2:] == size
