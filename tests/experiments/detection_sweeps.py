"""Detection sweeps that take seconds: a tiny network, two steps, three scenes."""

from dataclasses import replace

from batchfree.experiments.detection import make_preset, plan, results_of
from batchfree.experiments.detection_run import BackboneRun
from batchfree.experiments.sweep import run_sweep

COMMAND = "batchfree reproduce scratch --preset quick"
_SMALL = {
    "width": 8,
    "channels_per_group": 4,
    "fpn_channels": 16,
    "head_channels": 16,
    "fc_channels": 32,
    "anchors_per_image": 32,
    "rois_per_image": 16,
    "train_proposals": 30,
    "test_proposals": 30,
}
FIELDS = {f"model.{name}": value for name, value in _SMALL.items()}


class Log:
    """A watcher that writes down what it is told."""

    def __init__(self):
        self.kept, self.rows, self.notes = 0, [], []

    def started(self, runs, kept, steps, workers):
        self.kept, self.steps, self.workers = kept, steps, workers

    def advanced(self, steps):
        self.done = steps

    def finished(self, row):
        self.rows.append(row)

    def warned(self, message):
        self.notes.append(message)


def tiny_plan(experiment, folder, norms=None, steps=2, fields=None, **preset):
    """The runs of an experiment at the smallest scale."""
    scale = make_preset(experiment, "quick", norms=norms, steps=steps)
    scale = replace(scale, val_samples=3, evaluations=2, backbone_steps=2, **preset)
    return [_tiny(run) for run in plan(experiment, scale, folder, "cpu", FIELDS | (fields or {}))]


def _tiny(run):
    if isinstance(run, BackboneRun):
        return replace(run, config=run.config.replace(batch_size=4, data={"val_samples": 10}))
    return replace(run, backbone=run.backbone and _tiny(run.backbone))


def go(runs, folder, experiment, workers=1):
    """Trains them; returns the results and the log."""
    log = Log()
    results = run_sweep(
        runs,
        folder,
        lambda rows: results_of(
            rows, runs, experiment=experiment, preset_name="quick", command=COMMAND
        ),
        command=COMMAND,
        watcher=log,
        workers=workers,
    )
    return results, log
