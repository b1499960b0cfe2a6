"""H.264 in MP4, written frame by frame, with the times of the source and the audio of another file."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np

from rvseg_jax.core.errors import InputError

# What MP4 holds as it is; other audio is encoded again as AAC.
_COPIED_AUDIO = ("aac", "mp3", "ac3", "eac3", "alac", "opus", "flac")
_BT709 = 1


class Mp4Writer:
    """Write frames with their times; every frame once, whatever its spacing.

    An odd height or width gains one row or column that repeats the last, because 4:2:0 video needs even sizes.
    The first audio stream of `audio_from` goes along, copied packet by packet where MP4 can hold it.
    """

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        *,
        rate: Fraction,
        time_base: Fraction | None = None,
        audio_from: Path | None = None,
    ) -> None:
        self._pad = (height % 2, width % 2)
        self._time_base = time_base or Fraction(rate.denominator, rate.numerator)
        self._last: int | None = None
        with ExitStack() as opened:
            self._container: Any = opened.enter_context(av.open(str(path), "w", format="mp4"))
            self._stream = self._video_stream(height + self._pad[0], width + self._pad[1], rate)
            self._audio = None
            if audio_from is not None:
                source = opened.enter_context(av.open(str(audio_from)))
                self._audio = _AudioPackets(source, self._container)
            self._opened = opened.pop_all()

    def _video_stream(self, height: int, width: int, rate: Fraction) -> Any:
        # Without B-frames the first frame keeps its time exactly, and the file can be written as it comes.
        options = {"crf": "20", "preset": "veryfast", "bf": "0"}
        stream = self._container.add_stream("libx264", rate=rate, options=options)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.time_base = stream.codec_context.time_base = self._time_base
        context = stream.codec_context
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        return stream

    def add(self, image: np.ndarray, time: Fraction, duration: Fraction) -> None:
        """Write the next frame.

        Shapes: image [H, W, 3], uint8 RGB; time and duration in seconds.
        """
        if any(self._pad):
            image = np.pad(image, ((0, self._pad[0]), (0, self._pad[1]), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
        ticks = round(time / self._time_base)
        # Sources with damaged clocks repeat a time; a container cannot.
        ticks = ticks if self._last is None else max(ticks, self._last + 1)
        frame.pts, frame.time_base = ticks, self._time_base
        frame.duration = max(1, round(duration / self._time_base))
        self._last = ticks
        if self._audio is not None:
            for packet in self._audio.until(time):
                self._container.mux(packet)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what is left: delayed frames, and audio that lasts longer than the frames."""
        self._container.mux(self._stream.encode(None))
        if self._audio is not None:
            for packet in self._audio.until(None):
                self._container.mux(packet)
        self._opened.close()

    def abort(self) -> None:
        """Close the files as they are; the MP4 is not to be used."""
        with suppress(av.error.FFmpegError):  # a trailer without frames cannot be written
            self._opened.close()


class _AudioPackets:
    """Audio packets for the output in order of time, copied or encoded again."""

    def __init__(self, source: Any, output: Any) -> None:
        self._source = source
        self._input = source.streams.audio[0]
        codec = self._input.codec_context.codec.canonical_name
        self._copied = codec in _COPIED_AUDIO
        if self._copied:
            self._output = output.add_stream_from_template(self._input)
        else:
            self._output = output.add_stream("aac", rate=self._input.rate)
            self._output.layout = "mono" if self._input.channels == 1 else "stereo"
        self._packets = self._copy() if self._copied else self._encode()
        self._next = next(self._packets, None)

    def until(self, time: Fraction | None) -> Iterator[Any]:
        """Packets that begin no later than a time in seconds; all that are left for None."""
        while self._next is not None and (
            time is None or self._next.dts is None or self._next.dts * self._next.time_base <= time
        ):
            yield self._next
            self._next = next(self._packets, None)

    def _copy(self) -> Iterator[Any]:
        for packet in self._demux():
            if packet.dts is not None:  # the packet that ends the stream has no time
                packet.stream = self._output
                yield packet

    def _encode(self) -> Iterator[Any]:
        context = self._output.codec_context
        resampler = av.AudioResampler(format="fltp", layout=context.layout, rate=context.sample_rate)
        for packet in self._demux():
            for frame in packet.decode():
                for piece in resampler.resample(frame):
                    yield from self._output.encode(piece)
        for piece in resampler.resample(None):
            yield from self._output.encode(piece)
        yield from self._output.encode(None)

    def _demux(self) -> Iterator[Any]:
        try:
            yield from self._source.demux(self._input)
        except av.error.FFmpegError as error:
            raise InputError(
                f"{self._source.name}: the audio cannot be read ({error.strerror}); leave out the overlay"
            ) from None


def write_video(path: Path, frames: Iterable[np.ndarray], rate: Fraction | int) -> None:
    """Write frames at a constant rate as an MP4 file.

    Shapes: each frame [H, W, 3], uint8 RGB, all of one size.
    Raises: InputError where there are no frames.
    """
    rate = Fraction(rate)
    writer: Mp4Writer | None = None
    for index, image in enumerate(frames):
        if writer is None:
            writer = Mp4Writer(path, *image.shape[:2], rate=rate)
        writer.add(image, index / rate, 1 / rate)
    if writer is None:
        raise InputError(f"no frames to write to {path}")
    writer.close()
