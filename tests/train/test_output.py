import errno
import os

import pytest

from batchfree import ConfigError
from batchfree.train import Config, OutputError
from batchfree.train.output import (
    finite,
    prepare,
    tolerate_write_failure,
)


def no_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_prepare_makes_the_folder_and_leaves_the_config_only(tmp_path):
    prepare(tmp_path / "a" / "b", Config(), resume=False)
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["config.yaml"]


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/run': Not a directory; .* --output"):
        prepare(tmp_path / "file" / "run", Config(), resume=False)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to a read-only folder")
def test_a_read_only_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match=r"Permission denied; .*make it writable"):
        prepare(tmp_path, Config(), resume=False)


def test_a_full_disk_is_found_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.NamedTemporaryFile", no_space)
    with pytest.raises(OutputError, match="No space left on device; free some space"):
        prepare(tmp_path, Config(), resume=False)


def test_a_folder_with_a_run_is_not_overwritten(tmp_path):
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    last.write_bytes(b"")
    with pytest.raises(ConfigError, match=f"already holds a run: resume it with --resume {last}"):
        prepare(tmp_path, Config(), resume=False)
    prepare(tmp_path, Config(), resume=True)


def test_tolerated_failures_are_said_and_others_pass(tmp_path, capsys):
    with tolerate_write_failure(tmp_path):
        no_space()
    assert "No space left on device" in capsys.readouterr().err
    with tolerate_write_failure(tmp_path):
        raise RuntimeError("[enforce fail] PytorchStreamWriter failed writing file data/0")
    with pytest.raises(RuntimeError, match="bug"), tolerate_write_failure(tmp_path):
        raise RuntimeError("bug")


def test_json_has_null_for_a_loss_that_diverged():
    assert finite([{"step": 1, "train_loss": float("nan")}]) == [{"step": 1, "train_loss": None}]
