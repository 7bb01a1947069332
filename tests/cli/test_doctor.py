from __future__ import annotations

import json
import sys

import pytest
from click.testing import CliRunner

from avssl.cli import checks
from avssl.cli import doctor as doctor_module
from avssl.cli.checks import CHECKS, Finding
from avssl.cli.doctor import diagnose
from avssl.cli.main import main


@pytest.fixture
def doctor(monkeypatch):
    """Run the command with some checks replaced."""

    def run(*arguments, only=None, **replaced):
        chosen = {name: check for name, check in CHECKS.items() if only is None or name in only} | replaced
        monkeypatch.setattr(doctor_module, "CHECKS", chosen)
        return CliRunner().invoke(main, ["doctor", *arguments])

    return run


def test_this_installation_is_healthy(doctor):
    result = doctor("--json")
    findings = {finding["name"]: finding for finding in json.loads(result.stdout)}
    assert list(findings) == list(CHECKS)
    assert [name for name, finding in findings.items() if finding["status"] == "FAIL"] == []
    assert result.exit_code == 0
    assert findings["decode"]["detail"].startswith("pyav read 8 frames and 16000 samples")
    assert "torchaudio" in findings["torch"]["detail"]
    for name in ("decord", "torchcodec"):
        if findings[name]["status"] == "OK":
            assert findings[name]["detail"].endswith("read 8 frames and 16000 samples of sound")


def test_report_is_one_line_a_finding_with_the_remedy_below(doctor):
    result = doctor(only=["python"], gpu=lambda: Finding("gpu", "WARN", "none", "buy one"))
    first, second, third = result.stdout.splitlines()
    assert first.startswith("OK    python      3.")
    assert second == "WARN  gpu         none"
    assert third.strip() == "-> buy one"
    assert result.exit_code == 0


def test_check_that_breaks_is_a_failure_with_status_1(doctor):
    def broken() -> Finding:
        raise OSError("libfaiss.so: cannot open\nsecond line")

    result = doctor(only=["python"], faiss=broken)
    assert result.exit_code == 1
    assert "FAIL  faiss       OSError: libfaiss.so: cannot open\n" in result.stdout
    assert "second line" not in result.stdout


def test_torch_and_torchaudio_that_do_not_match_fail(monkeypatch):
    import torchaudio

    monkeypatch.setattr(torchaudio, "__version__", "2.9.0+cpu")
    finding = checks.check_torch()
    assert finding.status == "FAIL"
    assert "torchaudio 2.9.0+cpu do not match" in finding.detail
    assert finding.remedy.startswith("pip install 'torch==2.")


def test_missing_codecs_fail_or_warn_by_direction(monkeypatch):
    monkeypatch.setattr(checks, "_has_codec", lambda name, mode: (name, mode) != ("h264", "w"))
    assert checks.check_codecs().status == "WARN"
    monkeypatch.setattr(checks, "_has_codec", lambda name, mode: name != "aac")
    finding = checks.check_codecs()
    assert finding.status == "FAIL"
    assert "cannot decode aac" in finding.detail


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
def test_missing_second_decoder_is_only_a_warning(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    finding = checks.CHECKS[name]()
    assert finding.status == "WARN"
    assert f"{name!r} cannot be loaded" in finding.detail
    assert "optional" in finding.remedy


def test_reader_that_returns_wrong_frames_is_found(monkeypatch):
    import avssl.decode

    class Frozen:
        def read(self, path, video, audio):
            clip = avssl.decode.PyAVReader().read(path, video, audio)
            clip.frames[:] = clip.frames[:1].clone()
            return clip

    monkeypatch.setattr(avssl.decode, "open_reader", lambda name: Frozen())
    finding = checks.check_decode()
    assert finding.status == "FAIL"
    assert "wrong content" in finding.detail


def test_search_that_answers_wrongly_is_found(monkeypatch):
    import faiss

    monkeypatch.setattr(faiss, "IndexFlatIP", faiss.IndexFlatL2)
    assert checks.check_faiss().status == "OK"
    monkeypatch.setattr(faiss.IndexFlatL2, "search", lambda self, x, k: (x[:, :1], x[:, :1].astype(int)))
    assert checks.check_faiss().status == "FAIL"


def test_small_shared_memory_is_a_warning(monkeypatch):
    monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: type("Usage", (), {"total": 64 * 2**20}))
    finding = checks.check_machine()
    assert finding.status == "WARN"
    assert "--shm-size" in finding.remedy


def test_diagnosis_survives_every_check_failing(monkeypatch):
    def broken() -> Finding:
        raise RuntimeError("x")

    monkeypatch.setattr(doctor_module, "CHECKS", dict.fromkeys(CHECKS, broken))
    assert [finding.status for finding in diagnose()] == ["FAIL"] * len(CHECKS)


def test_driver_that_torch_refuses_is_named(monkeypatch):
    import warnings

    import torch

    def refuse() -> bool:
        warnings.warn("The NVIDIA driver on your system is too old", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", refuse)
    finding = checks.check_gpu()
    assert finding.status == "WARN"
    assert "driver on your system is too old" in finding.detail
    assert finding.remedy.startswith("update the driver")
