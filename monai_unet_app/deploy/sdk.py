"""The job as an operator of the MONAI Deploy App SDK; the only module that imports the SDK, and only to run."""

from typing import Any

from monai.deploy.conditions import CountCondition
from monai.deploy.core import Application, ConditionType, Operator

from monai_unet_app.deploy.job import ApplicationJob


class SegmentCases(Operator):  # type: ignore[misc]  # the SDK has no types
    """Segments every case of a job once and writes the results.

    Output "results": a list with the content of each `<case>_result.json`; nothing needs to be connected to it.
    """

    def __init__(self, fragment: Any, *args: Any, job: ApplicationJob, **kwargs: Any) -> None:
        self.job = job
        super().__init__(fragment, *args, **kwargs)

    def setup(self, spec: Any) -> None:
        """One output, which may stay unconnected."""
        spec.output("results").condition(ConditionType.NONE)

    def compute(self, op_input: Any, op_output: Any, context: Any) -> None:
        """Raises what `ApplicationJob.segment` raises, which stops the application."""
        op_output.emit(self.job.segment(), "results")


class SegmentationApp(Application):  # type: ignore[misc]  # the SDK has no types
    """An application of this one operator."""

    def __init__(self, job: ApplicationJob) -> None:
        self.job = job
        super().__init__()

    def compose(self) -> None:
        """The operator runs once."""
        self.add_operator(SegmentCases(self, CountCondition(self, 1), job=self.job, name="segment_cases"))


def run(job: ApplicationJob) -> None:
    """Runs the job in the SDK. Raises what `ApplicationJob.segment` raises."""
    SegmentationApp(job).run()
