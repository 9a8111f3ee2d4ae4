"""Reads the packets of a video track ahead of the decoder, so that frames that are never shown are not decoded.

The frame at a requested time is the last one that is not later than that time; the frames before it are not needed for
themselves. Where one of the frames ahead is a key frame, decoding starts there. Otherwise the decoder is told to skip
frames that no other frame refers to, in codecs that mark them: more than half of the frames in H.264 as x264 writes
it. The frames that are decoded are the same to the bit.

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
"""Codecs that mark every frame that no other frame refers to. HEVC marks them within one temporal layer only."""

MAX_PACKETS = 512
MAX_BYTES = 32 << 20
MAX_REORDERED = 32
"""After this many packets later than the requested time no earlier one is expected, where decoding times do not say so;
twice what H.264 and HEVC allow."""


class PacketLookahead:
    """Yields packets from the container's position on, and configures the decoder for each before yielding it."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        self._container = container
        self._context = stream.codec_context
        self._stream = stream
        self._marks_unreferenced = self._context.codec.canonical_name in MARKS_UNREFERENCED
        self._target: int | None = None
        self._is_skipping = False
        self.restart()

    def restart(self) -> None:
        """Start again at the position that the container was moved to."""
        self._source: Iterator[Packet[VideoStream]] = self._container.demux(self._stream)
        self._waiting: deque[Packet[VideoStream]] = deque()
        self._n_bytes = 0
        self._n_later = 0
        self._is_complete = False
        self._latest: int | None = None
        self._set_skipping(False)

    def set_target(self, time: int) -> None:
        """Set the time whose frame is requested next, in the stream's time base."""
        self._target = time
        self._is_complete = False
        times = [p.pts for p in self._waiting if p.pts is not None]
        self._n_later = sum(one > time for one in times)
        self._latest = max((one for one in times if one <= time), default=None)

    def __iter__(self) -> Iterator[Packet[VideoStream]]:
        """Yield the packets that have to be decoded.

        Raises: av.FFmpegError: the container is damaged here.
        """
        while True:
            failure: av.FFmpegError | None = None
            try:
                self._read_ahead()
            except av.FFmpegError as error:
                failure = error  # raised after the packets that were read before it
            if not self._waiting:
                if failure is not None:
                    raise failure
                return
            self._skip_to_key_frame()
            packet = self._waiting.popleft()
            self._n_bytes -= packet.size
            is_hidden = packet.pts is not None and self._latest is not None and packet.pts < self._latest
            self._set_skipping(self._marks_unreferenced and is_hidden)
            yield packet

    def _read_ahead(self) -> None:
        """Read packets until the frame at the requested time is known, or the buffer is full."""
        while not self._waiting or not self._has_enough:
            packet = next(self._source, None)
            if packet is None:
                self._is_complete = True
                return
            self._waiting.append(packet)
            self._n_bytes += packet.size
            if self._target is None:
                continue
            if packet.pts is not None and packet.pts > self._target:
                self._n_later += 1
            elif packet.pts is not None and (self._latest is None or packet.pts > self._latest):
                self._latest = packet.pts
            # A frame is not shown before it is decoded.
            self._is_complete = self._n_later >= MAX_REORDERED or (packet.dts is not None and packet.dts > self._target)

    @property
    def _has_enough(self) -> bool:
        full = len(self._waiting) >= MAX_PACKETS or self._n_bytes >= MAX_BYTES
        return full or self._is_complete or self._target is None

    def _skip_to_key_frame(self) -> None:
        """Continue at the last key frame that is not later than the requested time, where the buffer holds one.

        Frames before a key frame in decoding order are also shown before it, so nothing that the decoder still holds is
        needed.
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

    def _set_skipping(self, unreferenced: bool) -> None:
        """Set whether the decoder skips frames that no other frame refers to."""
        if unreferenced != self._is_skipping:
            self._is_skipping = unreferenced
            self._context.skip_frame = "NONREF" if unreferenced else "DEFAULT"
