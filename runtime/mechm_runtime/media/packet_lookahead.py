"""The packets of a video track, seen a little ahead, so that what nobody will look at is not decoded.

On the way to a moment, a frame that is followed by another one which is also not later than the moment is never shown.
Where it is a key frame that follows, decoding starts there. Else the decoder is told to pass over what other frames do
not refer to, in the codecs that mark such frames: in H.264 as x264 writes it more than half of them. The frames that
are decoded are the same to the bit.

Runs inside `worker`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import av
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

MARKS_UNREFERENCED = frozenset(("h264", "mpeg1video", "mpeg2video", "mpeg4", "vc1", "vp8", "wmv3"))
"""Codecs whose frames say truly that no other refers to them. HEVC's say it of one temporal layer only."""

MAX_PACKETS = 512
MAX_BYTES = 32 << 20
REORDERED = 32
"""Packets later than a moment after which no earlier one comes, where decoding times do not say so; twice what H.264
and HEVC allow."""


class PacketsAhead:
    """Packets from the container's position on, each with the decoder set for it when it is handed out."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container = container
        self._context = stream.codec_context
        self._stream = stream
        self._marks = self._context.codec.canonical_name in MARKS_UNREFERENCED
        self._moment: int | None = None
        self._is_passing_over = False
        self.restart()

    def restart(self) -> None:
        """Begin anew where the container was moved to."""
        self._source: Iterator[Packet[VideoStream]] = self._container.demux(self._stream)
        self._waiting: deque[Packet[VideoStream]] = deque()
        self._n_bytes = 0
        self._n_later = 0
        self._is_complete = False
        self._latest: int | None = None
        self._passes_over(False)

    def toward(self, moment: int) -> None:
        """Say which moment is wanted next, in the stream's time base; from now on."""
        self._moment = moment
        self._is_complete = False
        times = [p.pts for p in self._waiting if p.pts is not None]
        self._n_later = sum(time > moment for time in times)
        self._latest = max((time for time in times if time <= moment), default=None)

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        """Hand out what has to be decoded.

        Raises: av.FFmpegError: the container is damaged here.
        """
        while True:
            failure: av.FFmpegError | None = None
            try:
                self._look()
            except av.FFmpegError as error:
                failure = error  # after what was read before it
            if not self._waiting:
                if failure is not None:
                    raise failure
                return
            self._drop()
            packet = self._waiting.popleft()
            self._n_bytes -= packet.size
            unseen = packet.pts is not None and self._latest is not None and packet.pts < self._latest
            self._passes_over(self._marks and unseen)
            yield packet

    def _look(self) -> None:
        """Read on until the frame that the moment shows is known, or enough is held."""
        while not self._waiting or not self._sees_enough:
            packet = next(self._source, None)
            if packet is None:
                self._is_complete = True
                return
            self._waiting.append(packet)
            self._n_bytes += packet.size
            if self._moment is None:
                continue
            if packet.pts is not None and packet.pts > self._moment:
                self._n_later += 1
            elif packet.pts is not None and (self._latest is None or packet.pts > self._latest):
                self._latest = packet.pts
            # A frame is not shown before it is decoded.
            self._is_complete = self._n_later >= REORDERED or (packet.dts is not None and packet.dts > self._moment)

    @property
    def _sees_enough(self) -> bool:
        full = len(self._waiting) >= MAX_PACKETS or self._n_bytes >= MAX_BYTES
        return full or self._is_complete or self._moment is None

    def _drop(self) -> None:
        """Go on at the last key frame that the moment does not precede, where there is one ahead.

        What precedes a key frame in the order of decoding precedes it on the screen too, and the decoder holds nothing
        that is still to be shown.
        """
        if self._latest is None:
            return
        start = 0
        for index, packet in enumerate(self._waiting):
            if packet.is_keyframe and packet.pts is not None and packet.pts <= self._latest:
                start = index
        if start:
            for _ in range(start):
                self._n_bytes -= self._waiting.popleft().size
            self._context.flush_buffers()

    def _passes_over(self, unreferenced: bool) -> None:
        """Set whether the decoder leaves out frames that no other refers to."""
        if unreferenced != self._is_passing_over:
            self._is_passing_over = unreferenced
            self._context.skip_frame = "NONREF" if unreferenced else "DEFAULT"
