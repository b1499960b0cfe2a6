"""Runs tests by id, one a line of standard input, and answers each with a line of JSON; see conftest.py."""

import json
import os
import sys

import pytest


class Recorder:
    """Pytest plugin that keeps the outcome of the one test that runs."""

    def __init__(self) -> None:
        self.outcome, self.text = "failed", "the test did not run"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.outcome, self.text = report.outcome, report.longreprtext
            if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
                self.text = report.longrepr[2]


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what tests print must not get between the answers
    for line in sys.stdin:
        recorder = Recorder()
        pytest.main(
            [json.loads(line), "-q", "--no-header", "--no-summary", "-p", "no:cacheprovider"], plugins=[recorder]
        )
        answers.write(json.dumps({"outcome": recorder.outcome, "text": recorder.text}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
