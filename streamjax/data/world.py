"""The embedded world: a seeded source of small videos in which everything is known.

Coloured shapes enter, leave, move, turn, grow, shrink, blink, collide, and are dropped into a bowl
while a traffic light changes. `write_script(config, split, index)` decides what happens (cheap);
`render(script)` draws it. The same config, split and index always give the same script and the
same pixels.

Time: an event's motion runs over `[start, end]` seconds. Starts lie 0.9 s before a whole second
and ends lie on one, so the frames sampled once per second show a change at every second of
`turns_of(event) = [first, stop)`, and none at `stop`: that an event is over can be decided from
the frames seen so far, without a look ahead.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from streamjax.errors import InputError

COLOURS = {
    "red": (226, 54, 54),
    "green": (46, 184, 76),
    "blue": (58, 102, 235),
    "yellow": (240, 208, 48),
    "purple": (160, 70, 210),
    "white": (244, 244, 240),
}
SHAPES = ("circle", "square", "triangle", "star")
# Action -> how a sentence says it. `collide` takes a second thing as its object.
VERBS = {
    "move": "moves",
    "turn": "turns",
    "grow": "grows",
    "shrink": "shrinks",
    "blink": "blinks",
    "drop": "falls into the bowl",
    "enter": "enters",
    "leave": "leaves",
    "collide": "hits",
}
LIGHTS = {"red": COLOURS["red"], "amber": (245, 160, 30), "green": COLOURS["green"]}
# Seeds of different splits never meet: the split is part of every seed. `novel` holds the
# combinations of colour, shape and action that no other split ever shows.
SPLITS = {"train": 0, "val": 1, "test": 2, "novel": 3}

_BACKGROUND = (28, 30, 38)
_BOWL = (150, 120, 96)
_LEAD = 0.9
_RADIUS = 0.13  # of a thing, in units of the frame's shorter side


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """What can happen, and how it is filmed.

    `height`, `width`: pixels. `fps`: native frames per second of the video. `seconds`, `things`,
    `events`, `light_changes`: inclusive ranges, drawn per clip. `duration`: seconds per event.
    `gap`: whole seconds between one event's last second and the next one's first (>= 1).
    `hold_out`: every so many (colour, shape, action) combinations, one is kept for `novel`.
    """

    height: int = 64
    width: int = 64
    fps: float = 2.0
    seconds: tuple[int, int] = (14, 20)
    things: tuple[int, int] = (2, 4)
    events: tuple[int, int] = (3, 5)
    duration: tuple[int, int] = (2, 3)
    gap: tuple[int, int] = (1, 3)
    light_changes: tuple[int, int] = (3, 5)
    colours: tuple[str, ...] = ("red", "green", "blue", "yellow")
    shapes: tuple[str, ...] = ("circle", "square", "triangle")
    actions: tuple[str, ...] = ("move", "turn", "grow", "shrink", "blink", "drop")
    hold_out: int = 6
    seed: int = 0

    def __post_init__(self):
        for field, known in (("colours", COLOURS), ("shapes", SHAPES), ("actions", VERBS)):
            for name in getattr(self, field):
                if name not in known:
                    raise InputError(f"world {field}: {name!r} is not one of {', '.join(known)}")
        for field in ("seconds", "things", "events", "duration", "gap", "light_changes"):
            low, high = getattr(self, field)
            if not 0 <= low <= high:
                raise InputError(f"world {field}: {low}..{high} is not a range from low to high")
        if self.height < 1 or self.width < 1 or self.fps <= 0 or self.seconds[0] < 1:
            raise InputError(
                f"world frames: {self.height}x{self.width} at {self.fps} fps for "
                f"{self.seconds[0]} s; all must be positive"
            )
        if self.duration[0] < 2 or self.gap[0] < 1:
            raise InputError(
                f"world events: duration {self.duration[0]} s and gap {self.gap[0]} s; an event "
                "needs 2 s to be seen and 1 s to be answered"
            )


@dataclasses.dataclass(frozen=True)
class Thing:
    """A coloured shape; no two things of a clip share both."""

    colour: str
    shape: str

    @property
    def name(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclasses.dataclass(frozen=True)
class Event:
    """`things[thing]` does `action` during [start, end] seconds; `goal` says where or how far."""

    thing: int
    action: str
    start: float
    end: float
    goal: tuple[float, ...] = ()
    other: int | None = None


@dataclasses.dataclass(frozen=True)
class LightChange:
    """From `time` seconds on the light shows `colour`; the first one has time 0."""

    time: float
    colour: str


@dataclasses.dataclass(frozen=True)
class Script:
    """All that happens in one clip: the truth from which pixels and annotations are made.

    `places`: centre (x, y) of each thing at the start, in units of the frame's shorter side, or
    None for a thing that enters later.
    """

    config: WorldConfig
    split: str
    index: int
    seconds: int
    things: tuple[Thing, ...]
    places: tuple[tuple[float, float] | None, ...]
    events: tuple[Event, ...]
    lights: tuple[LightChange, ...]

    @property
    def name(self) -> str:
        return f"{self.split}_{self.index:06d}"

    @property
    def frames(self) -> int:
        return round(self.seconds * self.config.fps)


def turns_of(event: Event) -> tuple[int, int]:
    """[first, stop): the whole seconds whose sampled frame shows the event in progress."""
    return math.ceil(event.start), math.floor(event.end) + 1


def sentence(script: Script, event: Event, subject: str | None = None) -> str:
    """What the event is called: "the red circle grows"."""
    subject = subject or f"the {script.things[event.thing].name}"
    words = f"{subject} {VERBS[event.action]}"
    return words if event.other is None else f"{words} the {script.things[event.other].name}"


def light_at(script: Script, time: float | int) -> str:
    """The colour of the light at `time` seconds."""
    return [c.colour for c in script.lights if c.time <= time][-1]


def in_bowl(script: Script, time: float | int) -> int:
    """How many things lie in the bowl at `time` seconds."""
    return sum(e.action == "drop" and e.end <= time for e in script.events)


def is_novel(config: WorldConfig, thing: Thing, action: str) -> bool:
    """Whether the combination is held out: every pair of its parts is seen, the three never.

    A Latin square over the three lists: each (colour, shape), (colour, action) and
    (shape, action) misses few partners and keeps the rest.
    """
    place = (
        config.colours.index(thing.colour)
        + config.shapes.index(thing.shape)
        + config.actions.index(action)
    )
    return config.hold_out > 0 and place % config.hold_out == 0


# --- what happens ------------------------------------------------------------------------------


def write_script(config: WorldConfig, split: str, index: int) -> Script:
    """Decides what happens in clip `index` of `split` ("train", "val", "test" or "novel").

    Clips of `novel` show at least one held-out combination, all others none. Raises InputError for
    an unknown split, or when the config leaves nothing to happen.
    """
    if split not in SPLITS:
        raise InputError(f"world split {split!r} is not one of {', '.join(SPLITS)}")
    for attempt in range(1000):
        rng = np.random.default_rng([config.seed, SPLITS[split], index, attempt])
        script = _attempt(config, split, index, rng)
        novel = any(is_novel(config, script.things[e.thing], e.action) for e in script.events)
        if script.events and novel == (split == "novel"):
            return script
    raise InputError(
        f"world split {split!r} finds no clip: with hold_out={config.hold_out}, "
        f"{len(config.colours)} colours, {len(config.shapes)} shapes and {len(config.actions)} "
        "actions nothing is left to show; widen the config"
    )


def _attempt(config: WorldConfig, split: str, index: int, rng: np.random.Generator) -> Script:
    seconds = _draw(rng, config.seconds)
    pairs = [Thing(c, s) for c in config.colours for s in config.shapes]
    count = min(_draw(rng, config.things), len(pairs))
    things = [pairs[i] for i in rng.permutation(len(pairs))[:count]]
    aspect_x, aspect_y = _extent(config)
    spots = _free_spots(rng, aspect_x, aspect_y)
    places: list[tuple[float, float] | None] = [spots.pop() for _ in things]
    now: list[tuple[float, float] | None] = list(places)
    size = [1.0] * count

    events: list[Event] = []
    wanted = _draw(rng, config.events)
    first = 1 + _draw(rng, (0, config.gap[1]))
    while len(events) < wanted:
        action = config.actions[rng.integers(len(config.actions))]
        length = _draw(rng, config.duration)
        if action == "blink":
            length += length % 2  # ends bright, so that the second after shows no change
        if action in ("drop", "collide"):
            length = max(length, 3)
        if first + length > seconds - 1:
            break
        thing = _actor(rng, action, things, now, size, split, config)
        if thing is None:
            if all(_actor(rng, a, things, now, size, split, config) is None
                   for a in config.actions):  # fmt: skip
                break
            continue
        here = now[thing] or (0.0, 0.0)  # where it is; only what enters is nowhere
        start, end = first - _LEAD, float(first + length - 1)
        goal: tuple[float, ...] = ()
        other = None
        if action == "move":
            far = [s for s in spots if math.dist(s, here) > 0.28]
            if not far:
                continue
            goal = far[rng.integers(len(far))]
            spots.remove(goal)
            spots.append(here)
            now[thing] = goal
        elif action == "turn":
            goal = (float(rng.choice((-1.0, 1.0))),)
        elif action in ("grow", "shrink"):
            size[thing] = 1.0 if size[thing] != 1.0 else (1.5 if action == "grow" else 0.6)
            goal = (size[thing],)
        elif action == "drop":
            spots.append(here)
            now[thing] = None
            size[thing] = 0.0  # in the bowl for good
        elif action == "enter":
            goal = spots.pop(rng.integers(len(spots)))
            now[thing] = goal
            if not any(e.thing == thing for e in events):
                places[thing] = None
        elif action == "leave":
            spots.append(here)
            now[thing] = None
        elif action == "collide":
            partners = [i for i in range(count) if i != thing and _apart(now, size, i, thing)]
            if not partners:
                continue
            other = int(partners[rng.integers(len(partners))])
        events.append(Event(thing, action, start, end, goal, other))
        first += length + _draw(rng, config.gap)

    # A thing that first enters later is off stage until then.
    lights = [LightChange(0.0, str(rng.choice(list(LIGHTS))))]
    moments = rng.permutation(np.arange(2, max(seconds - 1, 2)))[: _draw(rng, config.light_changes)]
    for second in sorted(int(m) for m in moments):
        if second - lights[-1].time >= 2:
            others = [c for c in LIGHTS if c != lights[-1].colour]
            lights.append(LightChange(second - 0.5, others[rng.integers(len(others))]))
    return Script(config, split, index, seconds, tuple(things), tuple(places), tuple(events),
                  tuple(lights))  # fmt: skip


def _actor(rng, action, things, now, size, split, config) -> int | None:
    """A thing that can do `action` now, or None; outside `novel` never a held-out one."""
    on_stage = [p is not None for p in now]
    able = {
        "enter": [i for i, s in enumerate(on_stage) if not s and size[i] > 0],
        "grow": [i for i, s in enumerate(on_stage) if s and size[i] <= 1.0],
        "shrink": [i for i, s in enumerate(on_stage) if s and size[i] >= 1.0],
    }.get(action, [i for i, s in enumerate(on_stage) if s])
    if split != "novel":
        able = [i for i in able if not is_novel(config, things[i], action)]
    return int(able[rng.integers(len(able))]) if able else None


def _apart(now, size, one: int, two: int) -> bool:
    """Whether both are on stage with room to move towards one another."""
    if now[one] is None or now[two] is None:
        return False
    return math.dist(now[one], now[two]) > _RADIUS * (size[one] + size[two]) + 0.1


def _draw(rng: np.random.Generator, bounds: tuple[int, int]) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def _extent(config: WorldConfig) -> tuple[float, float]:
    short = min(config.height, config.width)
    return config.width / short, config.height / short


def _free_spots(rng, aspect_x: float, aspect_y: float) -> list[tuple[float, float]]:
    """Places for things, far enough apart that grown ones do not touch, in random order.

    Three columns by two rows above the bowl, beside the light, moved a little each.
    """
    columns = max(3, int(3 * aspect_x))
    rows = max(2, int(2 * aspect_y))
    spots = []
    for row in range(rows):
        for column in range(columns):
            jitter = rng.uniform(-0.035, 0.035, 2)
            x = (column + 0.5) / columns * aspect_x + jitter[0]
            y = 0.2 + row * (aspect_y - 0.32) / rows + jitter[1]
            spots.append((round(float(x), 4), round(float(y), 4)))
    return [spots[i] for i in rng.permutation(len(spots))]


# --- how it looks ------------------------------------------------------------------------------


@dataclasses.dataclass
class _Pose:
    x: float
    y: float
    radius: float
    angle: float = 0.0
    bright: float = 1.0


def sample_times(script: Script) -> Float[np.ndarray, " t"]:
    """The time in seconds of every native frame."""
    return np.arange(script.frames) / script.config.fps


def render(
    script: Script, times: Sequence[float | int] | Float[np.ndarray, " t"] | None = None
) -> UInt8[np.ndarray, "t h w 3"]:
    """The RGB frames at `times` seconds (default: every native frame)."""
    return _draw_frames(script, times, masks=False)[0]


def render_masks(
    script: Script, times: Sequence[float | int] | Float[np.ndarray, " t"] | None = None
) -> tuple[UInt8[np.ndarray, "t h w 3"], Bool[np.ndarray, "things t h w"]]:
    """The frames, and for each thing the pixels it visibly covers; nearer things hide others."""
    frames, masks = _draw_frames(script, times, masks=True)
    return frames, masks


def lamp_mask(config: WorldConfig) -> Bool[np.ndarray, "h w"]:
    """The pixels of the traffic light; it stays where it is, and nothing hides it."""
    canvas = np.zeros((config.height, config.width, 3), np.float32)
    _paint(canvas, "lamp", _lamp(config), (1, 1, 1))
    return canvas[..., 0] > 0.5


def boxes_of(masks: Bool[np.ndarray, "things t h w"]) -> Float[np.ndarray, "things t 4"]:
    """Boxes (x0, y0, x1, y1) in pixels around each mask, x1 and y1 exclusive; NaN where unseen."""
    boxes = np.full((*masks.shape[:2], 4), np.nan)
    for thing, frame in zip(*np.nonzero(masks.any((2, 3))), strict=True):
        rows = np.nonzero(masks[thing, frame].any(1))[0]
        columns = np.nonzero(masks[thing, frame].any(0))[0]
        boxes[thing, frame] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _draw_frames(script: Script, times, *, masks: bool):
    config = script.config
    times = sample_times(script) if times is None else np.asarray(times, float)
    short = min(config.height, config.width)
    aspect_x, aspect_y = _extent(config)
    shape = (config.height, config.width)
    bowl = (aspect_x / 2, aspect_y - 0.12)
    stage = np.empty((*shape, 3), np.float32)
    stage[:] = _BACKGROUND
    frames = np.empty((len(times), *shape, 3), np.uint8)
    seen = np.zeros((len(script.things) if masks else 0, len(times), *shape), bool)
    for f, time in enumerate(times):
        canvas = stage.copy()
        light = LIGHTS[light_at(script, time)]
        _paint(canvas, "lamp", _lamp(config), light)
        _paint(canvas, "bowl", _Pose(bowl[0] * short, bowl[1] * short, 0.2 * short), _BOWL)
        for i, thing in enumerate(script.things):
            pose = _pose(script, i, float(time), bowl)
            if pose is None:
                continue
            pose = _Pose(pose.x * short, pose.y * short, pose.radius * short, pose.angle,
                         pose.bright)  # fmt: skip
            cover = _paint(canvas, thing.shape, pose, COLOURS[thing.colour])
            if masks and cover is not None:
                box, alpha = cover
                seen[:, f, box[0], box[1]] &= ~(alpha > 0.5)
                seen[i, f, box[0], box[1]] = alpha > 0.5
        frames[f] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
    return frames, seen


def _lamp(config: WorldConfig) -> _Pose:
    short = min(config.height, config.width)
    return _Pose(0.12 * short, (_extent(config)[1] - 0.12) * short, 0.09 * short)


def _pose(script: Script, thing: int, time: float, bowl: tuple[float, float]) -> _Pose | None:
    """Where and how a thing is at `time`: its events replayed in order; None when off stage."""
    place = script.places[thing]
    pose = None if place is None else _Pose(*place, _RADIUS)
    caught = 0
    for event in script.events:
        if event.action == "drop" and event.thing != thing:
            caught += event.end <= time
        if event.thing != thing or time <= event.start:
            continue
        length = event.end - event.start
        done = min((time - event.start) / length, 1.0)
        over = time >= event.end
        if event.action == "enter":
            x, y = event.goal
            side = -0.15 if x < bowl[0] else 2 * bowl[0] + 0.15
            pose = _Pose(side + (x - side) * done, y, _RADIUS)
        elif pose is None:
            continue
        elif event.action == "move":
            pose.x += (event.goal[0] - pose.x) * done
            pose.y += (event.goal[1] - pose.y) * done
        elif event.action == "turn":
            pose.angle += event.goal[0] * math.radians(55) * length * done
        elif event.action in ("grow", "shrink"):
            was = pose.radius / _RADIUS
            pose.radius = _RADIUS * (was + (event.goal[0] - was) * done)
        elif event.action == "blink" and not over:
            pose.bright = 0.35 if int(time - event.start) % 2 == 0 else 1.0
        elif event.action == "leave":
            side = -0.15 if pose.x < bowl[0] else 2 * bowl[0] + 0.15
            pose.x += (side - pose.x) * done
            if over:
                pose = None
        elif event.action == "collide" and event.other is not None and not over:
            target = _pose(script, event.other, event.start, bowl)
            if target is not None:
                reach = 1 - (pose.radius + target.radius) / max(
                    math.dist((pose.x, pose.y), (target.x, target.y)), 1e-6
                )
                swing = max(reach, 0.0) * (1 - abs(2 * done - 1))
                pose.x += (target.x - pose.x) * swing
                pose.y += (target.y - pose.y) * swing
        elif event.action == "drop":
            slot = (bowl[0] + 0.085 * (caught % 3 - 1), bowl[1] - 0.045)
            above = (slot[0], 0.1)
            if done < 0.6:
                pose.x += (above[0] - pose.x) * done / 0.6
                pose.y += (above[1] - pose.y) * done / 0.6
            else:
                fall = (done - 0.6) / 0.4
                pose.x, pose.y = slot[0], above[1] + (slot[1] - above[1]) * fall
                pose.radius += (0.06 - pose.radius) * fall
    return pose


def _paint(canvas: np.ndarray, shape: str, pose: _Pose, colour):
    """Blends one shape into the canvas; returns its box and coverage, or None when off screen.

    Each shape carries a dark spot off its centre, so that a turning circle is seen to turn.
    """
    reach = math.ceil(pose.radius * 1.3) + 1
    height, width = canvas.shape[:2]
    x0, x1 = max(int(pose.x) - reach, 0), min(int(pose.x) + reach + 1, width)
    y0, y1 = max(int(pose.y) - reach, 0), min(int(pose.y) + reach + 1, height)
    if x0 >= x1 or y0 >= y1:
        return None
    ys, xs = np.ogrid[y0:y1, x0:x1]
    dx, dy = (xs - pose.x).astype(np.float32), (ys - pose.y).astype(np.float32)
    cos, sin = math.cos(pose.angle), math.sin(pose.angle)
    u, v = dx * cos + dy * sin, dy * cos - dx * sin
    distance = _distance(shape, u, v, pose.radius)
    alpha = np.clip(0.5 - distance, 0, 1)
    ink = np.asarray(colour, np.float32) * pose.bright
    box = (slice(y0, y1), slice(x0, x1))
    canvas[box] += alpha[..., None] * (ink - canvas[box])
    if shape in SHAPES and pose.radius > 4:
        spot = np.sqrt((u - 0.05 * pose.radius) ** 2 + (v + 0.5 * pose.radius) ** 2)
        dark = np.clip(0.5 - (spot - 0.26 * pose.radius), 0, 1) * alpha
        canvas[box] += dark[..., None] * (0.15 * ink - canvas[box])
    return box, alpha


def _distance(shape: str, u: np.ndarray, v: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance in pixels (approximate outside) to the edge of a shape at the origin."""
    if shape == "circle":
        return np.sqrt(u * u + v * v) - radius
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) - 0.88 * radius
    if shape == "triangle":
        return np.maximum(np.abs(u) * 0.8944 - v * 0.4472 - radius * 0.52, v - radius * 0.8)
    if shape == "star":
        angle = np.arctan2(v, u)
        return np.sqrt(u * u + v * v) - radius * (0.78 + 0.34 * np.cos(5 * angle - np.pi / 2))
    if shape == "lamp":
        return np.maximum(np.abs(u) - 0.7 * radius, np.abs(v) - radius)
    # The bowl: the lower half of a wide ellipse.
    return np.maximum(np.sqrt(u * u * 0.8 + v * v * 4) * 0.8 - radius * 0.8, -v)
