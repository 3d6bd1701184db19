"""How a run ends other than well, when its input was in order."""


class TrainingError(RuntimeError):
    """Training went wrong, though the input was in order; the message is one line."""


class Stopped(SystemExit):
    """The run was told to stop (SIGTERM), saved a checkpoint, and ends; the exit code is 143, as after SIGTERM itself.

    Attributes:
        step: the step that the checkpoint was written at.
    """

    def __init__(self, step: int) -> None:
        super().__init__(143)
        self.step = step
