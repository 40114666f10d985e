"""Ten kills of `make faults`, which does a hundred."""

import random

import pytest

import faults

SHARES = [(job, 1 if job.name in ("convert a model", "draw") else 2) for jobs in faults.JOBS.values() for job in jobs]


@pytest.fixture(scope="module", autouse=True)
def things():
    with faults.prepared():
        yield


@pytest.mark.parametrize("job, kills", SHARES, ids=[job.name for job, _ in SHARES])
def test_a_kill_leaves_nothing_half_written(job, kills):
    report = faults.try_job(job, kills, random.Random())
    assert report.faults == []
