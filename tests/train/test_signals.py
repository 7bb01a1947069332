"""Signals become a request, and their handlers are put back; how a run stops is in test_several_processes."""

from __future__ import annotations

import signal

import pytest

from avssl.train.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_signals_of_a_scheduler_are_noted_however_often_they_come(number):
    before = signal.getsignal(number)
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(number)
        signal.raise_signal(number)
        assert stop.number == number
    assert signal.getsignal(number) is before
