"""Draws the speakers of the sample: a face with an expression, an opening mouth and a gaze.

Everything is drawn with pillow from curves, `SUPERSAMPLING` times too large and scaled down, so that edges are smooth.
The story and the audio are in `make_sample.py`, which gives the openness of a mouth and the direction of a gaze.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import pairwise

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

SUPERSAMPLING = 3
"""Factor by which a figure is drawn too large before it is scaled down."""

Colour = tuple[int, int, int]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Expression:
    """A face as numbers; 0 is at rest, and halfway between two expressions lies the mean of their numbers.

    brow_inner, brow_outer: how far the ends of the brows are raised, in [-1, 1].
    eye_open: 1 at rest, 0 shut, 1.4 wide.
    mouth_curve: corners up (1) or down (-1).
    mouth_width: 1 at rest.
    mouth_open: how far open before any speech, in [0, 1].
    lip_raise: upper lip and nose drawn up, in [0, 1].
    blush, tear, sweat: how visible, in [0, 1].
    gaze_down: pupils lowered, in [0, 1].
    """

    brow_inner: float = 0.0
    brow_outer: float = 0.0
    eye_open: float = 1.0
    mouth_curve: float = 0.2
    mouth_width: float = 1.0
    mouth_open: float = 0.0
    lip_raise: float = 0.0
    blush: float = 0.0
    tear: float = 0.0
    sweat: float = 0.0
    gaze_down: float = 0.0

    def towards(self, other: Expression, share: float) -> Expression:
        """This expression moved by `share` in [0, 1] towards `other`."""
        moved = {
            f.name: getattr(self, f.name) + share * (getattr(other, f.name) - getattr(self, f.name))
            for f in fields(self)
        }
        return Expression(**moved)


EXPRESSIONS: dict[str, Expression] = {
    "neutral": Expression(),
    "anger": Expression(-0.95, 0.35, 0.82, -0.55, 0.95, 0.12, 0.25, 0.55),
    "disgust": Expression(-0.6, -0.15, 0.55, -0.6, 0.85, 0.16, 1.0, 0.0),
    "fear": Expression(0.95, 0.1, 1.32, -0.35, 1.15, 0.22, 0.0, 0.0, 0.0, 1.0),
    "joy": Expression(0.25, 0.3, 0.78, 1.0, 1.25, 0.25, 0.0, 0.75),
    "sadness": Expression(0.85, -0.6, 0.68, -0.8, 0.85, 0.0, 0.0, 0.1, 1.0, 0.0, 0.7),
    "surprise": Expression(0.9, 0.9, 1.42, -0.05, 0.62, 0.62),
}


@dataclass(frozen=True)
class Figure:
    """The looks of one person."""

    skin: Colour
    hair: Colour
    shirt: Colour
    iris: Colour
    hair_style: str
    beard: bool = False


def draw_figure(figure: Figure, face: Expression, *, speech: float, gaze: float, blink: bool, size: int) -> Image.Image:
    """Head and shoulders on a transparent ground.

    speech: how far the voice opens the mouth, in [0, 1].
    gaze: where the pupils look, -1 (the picture's left) to 1.
    size: width and height of the result in pixels; the head is about half as wide.

    Returns: RGBA (size, size).
    """
    # Rounding to invisible steps lets most frames of a video share a drawing.
    stepped = Expression(**{f.name: round(getattr(face, f.name) * 12) / 12 for f in fields(face)})
    return _drawn(figure, stepped, round(speech * 6) / 6, round(gaze * 4) / 4, blink, size)


@lru_cache(maxsize=4096)
def _drawn(figure: Figure, face: Expression, speech: float, gaze: float, blink: bool, size: int) -> Image.Image:
    pen = _Pen(size * SUPERSAMPLING)
    if blink:
        face = replace(face, eye_open=0.06)
    _back_hair(pen, figure)
    _shoulders(pen, figure)
    _head(pen, figure, face)
    for side in (-1.0, 1.0):
        _eye(pen, figure, face, side, gaze)
        _brow(pen, figure, face, side)
    _nose(pen, figure, face)
    if figure.beard:
        _beard(pen, figure)
    _mouth(pen, figure, face, speech)
    _front_hair(pen, figure)
    _drops(pen, face)
    return pen.image.resize((size, size), Image.Resampling.LANCZOS)


class _Pen:
    """Draws in units of half a head's width around the middle of the face, y downwards."""

    def __init__(self, size: int) -> None:
        self.image = Image.new("RGBA", (size, size), (0, 0, 0, 0))
        self.size = size
        self.unit = size / 4.1
        self.centre = (size / 2, size * 0.44)

    def at(self, points: Points) -> Points:
        return [(self.centre[0] + x * self.unit, self.centre[1] + y * self.unit) for x, y in points]

    def fill(
        self, points: Points, colour: Colour, *, alpha: int = 255, blur: float = 0.0, clip: Points | None = None
    ) -> None:
        """Fill an outline; blur is in head units, `clip` keeps the paint inside another outline."""
        mask = self._mask(points)
        if blur:
            mask = mask.filter(ImageFilter.GaussianBlur(blur * self.unit))
        if clip is not None:
            mask = ImageChops.multiply(mask, self._mask(clip))
        layer = Image.new("RGBA", self.image.size, (*colour, 255))
        layer.putalpha(mask.point(lambda value: value * alpha // 255))
        self.image.alpha_composite(layer)

    def line(self, points: Points, colour: Colour, width: float, *, alpha: int = 255) -> None:
        """A line with round ends; width in head units."""
        layer = Image.new("RGBA", self.image.size, (0, 0, 0, 0))
        draw = ImageDraw.Draw(layer)
        placed = self.at(points)
        thick = max(round(width * self.unit), 1)
        draw.line(placed, fill=(*colour, alpha), width=thick, joint="curve")
        for x, y in (placed[0], placed[-1]):
            draw.ellipse((x - thick / 2, y - thick / 2, x + thick / 2, y + thick / 2), fill=(*colour, alpha))
        self.image.alpha_composite(layer)

    def _mask(self, points: Points) -> Image.Image:
        mask = Image.new("L", self.image.size, 0)
        ImageDraw.Draw(mask).polygon(self.at(points), fill=255)
        return mask


def curve(*control: tuple[float, float], n_points: int = 24) -> Points:
    """Points on the Bézier curve with these control points."""
    t = np.linspace(0.0, 1.0, n_points)[:, None]
    points = [np.repeat(np.asarray(p, dtype=np.float64)[None], n_points, axis=0) for p in control]
    while len(points) > 1:
        points = [(1 - t) * a + t * b for a, b in pairwise(points)]
    return [(float(x), float(y)) for x, y in points[0]]


def ellipse(x: float, y: float, rx: float, ry: float, n_points: int = 48) -> Points:
    """Points around an ellipse."""
    angles = np.linspace(0.0, 2.0 * np.pi, n_points, endpoint=False)
    return [(x + rx * float(np.cos(a)), y + ry * float(np.sin(a))) for a in angles]


def shade(colour: Colour, factor: float) -> Colour:
    """Darker (below 1) or lighter (above 1)."""
    if factor <= 1:
        return (int(colour[0] * factor), int(colour[1] * factor), int(colour[2] * factor))
    rest = factor - 1
    return (
        int(colour[0] + (255 - colour[0]) * rest),
        int(colour[1] + (255 - colour[1]) * rest),
        int(colour[2] + (255 - colour[2]) * rest),
    )


def mirrored(points: Points) -> Points:
    """The points and, backwards, their mirror images: half an outline made whole."""
    return points + [(-x, y) for x, y in reversed(points)]


HEAD: Points = mirrored(
    curve((0, -1.28), (0.62, -1.28), (0.98, -0.95), (0.98, -0.35))
    + curve((0.98, -0.3), (0.98, 0.45), (0.72, 0.78), (0.42, 1.08))
    + curve((0.42, 1.08), (0.28, 1.22), (0.12, 1.26), (0, 1.26))
)


def _shoulders(pen: _Pen, figure: Figure) -> None:
    neck = mirrored([(0.42, 0.7), (0.4, 1.3), (0.62, 1.62), (0.0, 1.9)])
    body = mirrored([(0.0, 1.62), (0.55, 1.55), *curve((0.55, 1.5), (1.25, 1.62), (1.7, 1.9), (1.85, 2.7)), (0, 2.7)])
    pen.fill(body, figure.shirt)
    pen.fill([(x, y + 0.28) for x, y in body], shade(figure.shirt, 0.82), alpha=150, blur=0.15, clip=body)
    pen.fill(neck, shade(figure.skin, 0.9))
    pen.fill(ellipse(0, 1.12, 0.6, 0.32), shade(figure.skin, 0.62), alpha=130, blur=0.08, clip=neck)


def _head(pen: _Pen, figure: Figure, face: Expression) -> None:
    skin = figure.skin
    for side in (-1.0, 1.0):
        pen.fill(ellipse(side * 0.99, 0.02, 0.15, 0.26), shade(skin, 0.88))
    pen.fill(HEAD, skin)
    # Light comes from the upper left: a shadow along the right cheek, under the brows and beside the nose, light on
    # forehead and nose. Face finders look for exactly these.
    pen.fill([(x + 0.62, y + 0.12) for x, y in HEAD], shade(skin, 0.72), alpha=120, blur=0.22, clip=HEAD)
    pen.fill(ellipse(-0.2, -0.72, 0.52, 0.3), shade(skin, 1.4), alpha=110, blur=0.16, clip=HEAD)
    for side in (-1.0, 1.0):
        pen.fill(ellipse(side * 0.42, -0.16, 0.34, 0.22), shade(skin, 0.66), alpha=135, blur=0.09, clip=HEAD)
        pen.fill(ellipse(side * 0.55, 0.34, 0.26, 0.18), shade(skin, 1.3), alpha=70, blur=0.1, clip=HEAD)
        if face.blush > 0:
            pen.fill(
                ellipse(side * 0.56, 0.36, 0.25, 0.16), (226, 84, 74), alpha=int(95 * face.blush), blur=0.1, clip=HEAD
            )
    pen.fill(ellipse(0, 0.93, 0.34, 0.07), shade(skin, 0.7), alpha=90, blur=0.06, clip=HEAD)


def _eye(pen: _Pen, figure: Figure, face: Expression, side: float, gaze: float) -> None:
    x, y, half, height = side * 0.42, -0.12, 0.235, 0.135 * face.eye_open
    dark = (38, 24, 22)
    if height < 0.03:
        pen.line(curve((x - half, y), (x, y + 0.1), (x + half, y)), dark, 0.05)
        return
    lower = 0.85 - 0.35 * max(face.mouth_curve, 0.0)
    white = curve((x - half, y), (x, y - 2.0 * height), (x + half, y)) + curve(
        (x + half, y), (x, y + 2.0 * height * lower), (x - half, y)
    )
    pen.fill(white, (247, 245, 240))
    pupil_x, pupil_y = x + 0.085 * gaze, y - 0.005 + 0.06 * face.gaze_down
    pen.fill(ellipse(pupil_x, pupil_y, 0.115, 0.115), figure.iris, clip=white)
    pen.fill(ellipse(pupil_x, pupil_y, 0.062, 0.062), (18, 12, 12), clip=white)
    pen.fill(ellipse(pupil_x - 0.04, pupil_y - 0.045, 0.028, 0.028), (255, 255, 255), clip=white)
    pen.fill(ellipse(x, y - 1.35 * height, half, 0.55 * height), dark, alpha=110, blur=0.03, clip=white)
    pen.line(curve((x - half, y), (x, y - 2.0 * height), (x + half, y)), dark, 0.042)
    pen.line(curve((x - half, y), (x, y + 2.0 * height * lower), (x + half, y)), shade(figure.skin, 0.5), 0.018)


def _brow(pen: _Pen, figure: Figure, face: Expression, side: float) -> None:
    inner = (side * 0.17, -0.4 - 0.15 * face.brow_inner)
    outer = (side * 0.72, -0.4 - 0.15 * face.brow_outer)
    middle = (side * 0.46, -0.53 - 0.075 * (face.brow_inner + face.brow_outer))
    thick = 0.06 if figure.beard else 0.045
    top = curve((inner[0], inner[1] - thick), (middle[0], middle[1] - thick), outer)
    bottom = curve(outer, (middle[0], middle[1] + thick), (inner[0], inner[1] + thick))
    pen.fill(top + bottom, shade(figure.hair, 0.7))
    if face.brow_inner < -0.4:
        crease = curve((side * 0.08, -0.52), (side * 0.05, -0.4), (side * 0.09, -0.3))
        pen.line(crease, shade(figure.skin, 0.55), 0.03, alpha=170)


def _nose(pen: _Pen, figure: Figure, face: Expression) -> None:
    skin, up = figure.skin, 0.05 * face.lip_raise
    pen.fill(ellipse(-0.03, 0.05, 0.07, 0.34), shade(skin, 1.5), alpha=150, blur=0.05)
    pen.fill(ellipse(0.13, 0.22, 0.08, 0.22), shade(skin, 0.66), alpha=110, blur=0.06)
    pen.line(
        curve((-0.19, 0.38 - up), (-0.12, 0.5 - up), (0, 0.47 - up), (0.12, 0.5 - up), (0.19, 0.38 - up)),
        shade(skin, 0.52),
        0.035,
    )
    if face.lip_raise > 0.5:
        for side in (-1.0, 1.0):
            for level in (0.02, 0.11):
                pen.line([(side * 0.07, level), (side * 0.15, level - 0.05)], shade(skin, 0.55), 0.025, alpha=170)
            fold = curve((side * 0.22, 0.36), (side * 0.4, 0.46), (side * 0.44, 0.7))
            pen.line(fold, shade(skin, 0.55), 0.026, alpha=150)


def _mouth(pen: _Pen, figure: Figure, face: Expression, speech: float) -> None:
    half = 0.33 * face.mouth_width * (1.0 - 0.12 * speech)
    y = 0.72 - 0.03 * face.lip_raise
    corner = -0.11 * face.mouth_curve
    # Surprise and speech both open the mouth: they add up, within the range of a jaw.
    opening = min(face.mouth_open + 0.75 * speech, 1.05) * 0.3
    upper = -0.04 - 0.16 * opening - 0.07 * face.lip_raise + 0.1 * max(face.mouth_curve, 0.0)
    lower = 0.05 + opening + 0.13 * max(face.mouth_curve, 0.0) - 0.1 * max(-face.mouth_curve, 0.0) * (1 - opening)
    left, right = (-half, y + corner), (half, y + corner)
    top = curve(left, (-half * 0.5, y + upper * 2), (half * 0.5, y + upper * 2), right)
    bottom = curve(right, (half * 0.6, y + lower * 1.45), (-half * 0.6, y + lower * 1.45), left)
    lip = (176, 84, 78) if not figure.beard else (160, 92, 80)
    if opening < 0.02:
        # Lips that touch: one line that smiles or droops, a fuller lip under it.
        bow = curve(left, (-half * 0.4, y + 0.1 * face.mouth_curve), (half * 0.4, y + 0.1 * face.mouth_curve), right)
        pen.fill(bow + curve(right, (0, y + 0.2 + 0.16 * face.mouth_curve), left), lip, alpha=200)
        pen.line(bow, shade(lip, 0.55), 0.04)
        return
    inside = top + bottom
    pen.fill(inside, (84, 24, 30))
    pen.fill(ellipse(0, y + lower * 1.05, half * 0.55, max(opening * 0.42, 0.03)), (204, 92, 96), clip=inside)
    pen.fill(
        [(x, py - 0.02) for x, py in top] + [(x, py + 0.075) for x, py in reversed(top)], (250, 248, 244), clip=inside
    )
    pen.line(top, lip, 0.055)
    pen.line(bottom, lip, 0.065)


def _beard(pen: _Pen, figure: Figure) -> None:
    jaw = mirrored(list(reversed(curve((0.0, 1.27), (0.4, 1.28), (0.9, 0.9), (0.97, 0.05)))))
    cheeks = mirrored(list(reversed(curve((0.0, 0.55), (0.42, 0.56), (0.62, 0.5), (0.86, 0.02)))))
    pen.fill(jaw + list(reversed(cheeks)), figure.hair, alpha=150, blur=0.03, clip=HEAD)


def _back_hair(pen: _Pen, figure: Figure) -> None:
    if figure.hair_style == "bob":
        pen.fill(
            mirrored(
                curve((0, -1.5), (0.9, -1.5), (1.3, -0.9), (1.22, 0.1))
                + curve((1.22, 0.1), (1.24, 0.7), (1.15, 0.95), (0.85, 1.05))
            ),
            shade(figure.hair, 0.8),
        )
    elif figure.hair_style == "curls":
        for x, y, r in _CURLS:
            pen.fill(ellipse(x, y, r, r), shade(figure.hair, 0.85))


_CURLS = [
    (float(1.08 * np.sin(a)), float(-0.42 - 1.02 * np.cos(a)), 0.36) for a in np.linspace(-2.25, 2.25, 15)
]  # fmt: skip


def _front_hair(pen: _Pen, figure: Figure) -> None:
    hair = figure.hair
    if figure.hair_style == "short":
        cap = (
            curve((-1.02, -0.15), (-1.2, -1.1), (-0.7, -1.55), (0.05, -1.5))
            + curve((0.05, -1.5), (0.8, -1.5), (1.16, -1.1), (1.02, -0.15))
            + curve((1.02, -0.15), (0.92, -0.6), (0.86, -0.86), (0.5, -0.86))
            + curve((0.5, -0.86), (0.0, -0.78), (-0.3, -1.0), (-0.62, -0.8))
            + curve((-0.62, -0.8), (-0.86, -0.7), (-0.94, -0.5), (-1.02, -0.15))
        )
        pen.fill(cap, hair)
        pen.fill(ellipse(-0.25, -1.25, 0.5, 0.14), shade(hair, 1.25), alpha=120, blur=0.08, clip=cap)
    elif figure.hair_style == "bob":
        left = curve((0.25, -1.46), (-0.7, -1.5), (-1.3, -1.0), (-1.18, 0.35)) + curve(
            (-1.18, 0.35), (-0.98, 0.1), (-0.95, -0.55), (0.25, -1.0)
        )
        right = curve((0.2, -1.46), (0.95, -1.46), (1.3, -0.9), (1.18, 0.35)) + curve(
            (1.18, 0.35), (1.0, 0.0), (0.95, -0.7), (0.2, -1.02)
        )
        for lock in (right, left):
            pen.fill(lock, hair)
        pen.fill(ellipse(-0.4, -1.2, 0.4, 0.14), shade(hair, 1.3), alpha=130, blur=0.08, clip=left)
    else:
        for x, y, r in _CURLS[3:12]:
            pen.fill(ellipse(x * 0.9, y * 0.86 - 0.1, r * 0.8, r * 0.8), hair)
        for x, y, r in _CURLS[4:8]:
            pen.fill(ellipse(x * 0.9 - 0.06, y * 0.86 - 0.2, r * 0.3, r * 0.3), shade(hair, 1.25), alpha=130, blur=0.05)


def _drops(pen: _Pen, face: Expression) -> None:
    water = (150, 205, 240)
    if face.tear > 0.5:
        drop = curve((-0.5, 0.08), (-0.62, 0.36), (-0.5, 0.42)) + curve((-0.5, 0.42), (-0.38, 0.36), (-0.5, 0.08))
        pen.fill(drop, water, alpha=int(220 * face.tear))
    if face.sweat > 0.5:
        drop = curve((0.8, -0.78), (0.66, -0.46), (0.8, -0.4)) + curve((0.8, -0.4), (0.94, -0.46), (0.8, -0.78))
        pen.fill(drop, water, alpha=int(220 * face.sweat))


def draw_room(width: int, height: int) -> Image.Image:
    """A kitchen in the evening: wall, window with a dark blue sky, lamp light, a shelf. RGB (height, width)."""
    scale = 2
    w, h = width * scale, height * scale
    y = np.linspace(0.0, 1.0, h)[:, None]
    x = np.linspace(0.0, 1.0, w)[None, :]
    glow = np.exp(-(((x - 0.5) / 0.42) ** 2 + ((y - 0.25) / 0.5) ** 2))
    wall = np.stack([150 + 70 * glow, 138 + 66 * glow, 122 + 52 * glow], axis=-1)
    room = Image.fromarray(wall.clip(0, 255).astype(np.uint8), "RGB")
    draw = ImageDraw.Draw(room)
    left, top, right, bottom = w * 0.05, h * 0.1, w * 0.2, h * 0.52
    draw.rounded_rectangle((left - 10, top - 10, right + 10, bottom + 10), 8, fill=(214, 200, 176))
    draw.rectangle((left, top, right, bottom), fill=(44, 62, 104))
    draw.ellipse((left + 30, top + 26, left + 74, top + 70), fill=(240, 232, 196))
    draw.line(((left + right) / 2, top, (left + right) / 2, bottom), fill=(214, 200, 176), width=9)
    draw.line((left, (top + bottom) / 2, right, (top + bottom) / 2), fill=(214, 200, 176), width=9)
    shelf = h * 0.3
    draw.rectangle((w * 0.8, shelf, w * 0.97, shelf + 10), fill=(120, 84, 58))
    for index, colour in enumerate([(188, 84, 66), (222, 176, 92), (92, 132, 122), (106, 90, 140)]):
        x0 = w * 0.815 + index * w * 0.036
        draw.rounded_rectangle((x0, shelf - 64 + 9 * (index % 2), x0 + w * 0.026, shelf - 1), 8, fill=colour)
    draw.line((w * 0.5, 0, w * 0.5, h * 0.07), fill=(80, 66, 54), width=6)
    draw.polygon(
        [(w * 0.455, h * 0.12), (w * 0.545, h * 0.12), (w * 0.52, h * 0.06), (w * 0.48, h * 0.06)], fill=(226, 140, 74)
    )
    return room.resize((width, height), Image.Resampling.LANCZOS)


def draw_table(width: int, height: int) -> Image.Image:
    """The table in front of everybody, with three cups. RGBA (height, width)."""
    scale = 2
    image = Image.new("RGBA", (width * scale, height * scale), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    w, h = image.size
    top = h * 0.885
    draw.rounded_rectangle((-40, top, w + 40, h * 1.1), 26, fill=(134, 92, 62, 255))
    draw.rounded_rectangle((-40, top, w + 40, top + 14), 7, fill=(166, 118, 82, 255))
    for x, colour in ((0.3, (92, 132, 122)), (0.63, (188, 84, 66)), (0.9, (222, 176, 92))):
        draw.rounded_rectangle((w * x, top - 34, w * x + 44, top + 16), 9, fill=(*colour, 255))
        draw.arc((w * x + 34, top - 26, w * x + 62, top + 6), -90, 90, fill=(*colour, 255), width=8)
    return image.resize((width, height), Image.Resampling.LANCZOS)
