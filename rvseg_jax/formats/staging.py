"""Output folders in which a result appears whole or not at all."""

import errno
import os
import shutil
import tempfile
from pathlib import Path
from types import TracebackType

from rvseg_jax.core.errors import InputError


class Staging:
    """A hidden folder inside the output folder, whose results move out when the `with` block ends well.

    A file or folder that is there already under a result's name is replaced. After an error the output folder
    is as it was before, and folders that were made for it are gone again.
    Raises: InputError where the output folder cannot be made or written to, on entering or later.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.results: list[str] = []
        self._made: list[Path] = []

    def __enter__(self) -> "Staging":
        try:
            for path in [*reversed(self.folder.parents), self.folder]:
                if not path.exists():
                    path.mkdir()
                    self._made.append(path)
            self._hidden = Path(tempfile.mkdtemp(prefix=".rvseg-", dir=self.folder))
        except OSError as error:
            self._remove_made()
            raise InputError(
                f"cannot write to {self.folder} ({error.strerror or error}); choose another folder"
            ) from None
        return self

    def path(self, name: str) -> Path:
        """Where to write the result that will be `folder / name`, a file or a folder."""
        path = self._hidden / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.results.append(name)
        return path

    def abandon(self) -> None:
        """Leave the output folder as it was."""
        shutil.rmtree(self._hidden, ignore_errors=True)
        self._remove_made()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._publish()
        finally:
            if kind is None:
                shutil.rmtree(self._hidden, ignore_errors=True)
            else:
                self.abandon()
        if isinstance(error, OSError) and self._is_ours(error):
            raise InputError(f"cannot write to {self.folder} ({error.strerror or error}); nothing was kept") from error

    def _is_ours(self, error: OSError) -> bool:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
        return full or str(self._hidden) in str(error.filename)

    def _publish(self) -> None:
        for index, name in enumerate(self.results):
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir() and not target.is_symlink():  # a full folder cannot be replaced in one step
                os.replace(target, self._hidden / f"old-{index}")
            os.replace(self._hidden / name, target)

    def _remove_made(self) -> None:
        for path in reversed(self._made):
            if path.exists() and not any(path.iterdir()):
                path.rmdir()


def check_writable(folder: Path | str) -> None:
    """Find out, leaving no trace, whether results can be written to a folder.

    Raises: InputError where they cannot.
    """
    Staging(folder).__enter__().abandon()
