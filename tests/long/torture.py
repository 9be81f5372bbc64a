"""
One breaker under everything at once, round after round; see :mod:`test_torture`, which runs it.

    torture.py --seconds 180                  with a seed of its own, which it prints
    torture.py --seed 7 --round 12            that round again: the same plan and dice, other moments
    torture.py --seed 7 --seconds 5 --no-ages for a machine that may be slow

In each round some twenty threads reserve, nest, resize, acquire, release elsewhere, drop into cycles of garbage, fork,
cancel, close event loops and let others rest, while signals go off in the main thread, listeners raise and ask back, and
the sampler fails now and then. At the end of each the books must be at 0. Ends with 1 after anything that must not be,
and with all stacks on stderr if something hangs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import contextvars
import dataclasses
import faulthandler
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import Counter, deque

from memguard import MemoryCircuitBreaker, MemoryCircuitBreakerError, MemoryUsage
from memguard.breaker._config import make_config
from memguard.breaker._learning import _alive

MIB = 1024**2
LIMIT = 1000 * MIB
LEAST, MOST = 300 * MIB, 1000 * MIB
"""What is in use beside the jobs, and the limit where it moves."""
INTERVAL = 0.25
SLOP_SECONDS = 0.5
"""So long a thread may wait for the interpreter beside twenty others."""
HANG_SECONDS = 90.0
CHILD_SECONDS = 60.0


class Broken(Exception):
    """What a job raises on purpose."""


class Interruption(Exception):
    """What a signal handler raises."""


class HardInterruption(BaseException):
    """The same, of the kind that no ``except Exception`` holds up."""


EXPECTED = (MemoryCircuitBreakerError, Broken)


class Machine:
    """A sampler: what is in use is a background and what the jobs took. Each of them writes its own cell."""

    def __init__(self):
        self.dice = random.Random(1)
        self.cells = {}
        self.calm()

    def calm(self):
        self.background, self.limit_bytes, self.fails, self.sleeps = LEAST, LIMIT, 0.0, 0.0

    def __call__(self):
        at = time.monotonic()
        self.tried_at = at
        if self.sleeps and self.dice.random() < self.sleeps:
            time.sleep(0.005)
        if self.fails and self.dice.random() < self.fails:
            raise self.dice.choice([OSError, ValueError, MemoryError, KeyError])("no reading")
        used = self.background + sum(list(self.cells.values()))
        return MemoryUsage(used, used, used, self.limit_bytes, "simulated", at)


@dataclasses.dataclass
class Plan:
    """What a round has in it beside what all have."""

    still: bool
    nested: bool
    modes: bool
    relief: bool
    fails: float
    collects: bool
    switches: float
    seconds: float

    @classmethod
    def of(cls, dice):
        still = dice.random() < 0.5
        return cls(
            still=still,
            nested=dice.random() < 0.6,
            modes=not still and dice.random() < 0.3,
            relief=dice.random() < 0.5,
            fails=dice.choice([0.0, 0.0, 0.1]),
            collects=dice.random() < 0.5,
            switches=dice.choice([1e-5, 1e-4, 5e-3]),
            seconds=dice.uniform(1.0, 4.0),
        )

    def words(self):
        facts = {"still": self.still, "nested": self.nested, "modes": self.modes, "relief": self.relief}
        facts |= {"fails": self.fails > 0, "collects": self.collects}
        return " ".join(name for name, true in facts.items() if true) or "moving"

    @property
    def top_bytes(self):
        """The most that may ever be booked, by what the machine shows."""
        if self.modes:
            return sys.maxsize  # while it only observes, or is off, all are let in
        # Those who wait for each other are let on up to the highest line.
        share = 0.8 if self.still and not self.nested else 0.95
        return int(LIMIT * share) - LEAST


class Round:
    """One round on the breaker: its plan, its dice, and what was seen."""

    def __init__(self, torture, number):
        self.torture = torture
        self.breaker, self.machine = torture.breaker, torture.machine
        self.seed = f"{torture.seed}/{number}"
        self.plan = Plan.of(random.Random(self.seed))
        self.over = threading.Event()
        self.shared = deque()
        self.faults = []
        self.done = Counter()
        self.oldest = 0.0
        self.most = 0

    def dice(self, name):
        return random.Random(f"{self.seed}/{name}")

    def size(self, dice):
        if dice.random() < 0.02:
            return 2 * LIMIT
        return dice.choice([0, 1, dice.randrange(MIB), dice.randrange(60 * MIB), dice.randrange(300 * MIB)])

    def patience(self, dice):
        return dice.choice([0, 0, 0.0005, 0.01, 0.1, None])

    def pause(self, dice):
        if dice.random() < 0.5:
            time.sleep(dice.choice([0, 0.0005, 0.003]))

    def look(self):
        """Note how much is booked now: never too much, since what came back is read after what was booked."""
        booked = self.breaker._desk.reserved_bytes
        self.most = max(self.most, booked)
        if booked > self.plan.top_bytes:
            self.faults.append(f"{booked / MIB:.0f} MiB booked where {self.plan.top_bytes / MIB:.0f} fit")

    @contextlib.contextmanager
    def using(self, nbytes):
        """Take *nbytes* of the machine; after they were booked, and until before they are given back."""
        key = object()
        self.machine.cells[key] = nbytes
        try:
            yield
        finally:
            del self.machine.cells[key]

    # ----- what threads do, each again and again

    def reserving(self, dice):
        with self.breaker.reserve(self.size(dice), timeout=self.patience(dice)) as held, self.using(held.nbytes):
            self.look()
            if self.plan.nested and dice.random() < 0.4:
                with self.breaker.reserve(self.size(dice), timeout=self.patience(dice)):
                    self.look()
                    self.pause(dice)
            self.pause(dice)
            if dice.random() < 0.1:
                raise Broken
        if dice.random() < 0.3:
            with self.breaker.reserve(self.size(dice), timeout=0.01) as held:
                for _ in range(3):
                    held.resize(self.size(dice))
                    self.look()

    def acquiring(self, dice):
        held = self.breaker.acquire(self.size(dice), timeout=self.patience(dice))
        if self.plan.nested and dice.random() < 0.3:
            held.run(self.reserving, dice)
        self.shared.append(held)
        while len(self.shared) > 12:
            time.sleep(0.0005)
            if self.over.is_set():
                break

    def releasing(self, dice):
        try:
            held = self.shared.popleft()
        except IndexError:
            time.sleep(0.001)
            return
        way = dice.randrange(4)
        if way == 0:
            held.release()
        elif way == 1:
            with held:
                pass
        elif way == 2:
            held.release()
            held.release()
        # else it is dropped

    def littering(self, dice):
        """Leave what is held, or waits to go on, in a cycle that only the collector finds."""
        time.sleep(0.002)
        cycle = []
        cycle.append(cycle)
        if dice.random() < 0.5:
            cycle.append(self.breaker.acquire(self.size(dice) // 4, timeout=0))
        else:
            steps = self.torture.functions.numbers(3)
            cycle.append(steps)
            next(steps)
        if dice.random() < 0.2:
            del cycle
            gc.collect(dice.randrange(3))

    def calling(self, dice):
        self.call(dice, dice.randrange(6))

    def call(self, dice, way):
        functions = self.torture.functions
        if way == 0:
            functions.plain(self.size(dice), dice.random() < 0.1)
        elif way == 1:
            for _ in functions.numbers(dice.randrange(4)):
                self.look()
                if dice.random() < 0.2:
                    break
        elif way == 2:
            functions.checked()
        elif way == 3:
            self.breaker.execute(functions.raw, dice.randrange(1000))
        elif way == 4:
            asyncio.run(functions.awaited(self.size(dice)))
        else:
            asyncio.run(functions.walk(dice.randrange(4)))

    def learning(self, dice):
        functions = self.torture.functions
        if dice.random() < 0.7:
            functions.learned(bytes(dice.choice([10, 1000, 100_000])))
        elif dice.random() < 0.5:
            asyncio.run(functions.alearned(dice.randrange(1, 1_000_000)))
        else:
            for _ in functions.learned_steps(dice.randrange(3)):
                if dice.random() < 0.3:
                    break

    async def task(self, dice, *, limited):
        async with asyncio.timeout(dice.choice([0.0005, 0.01, None])) if limited else contextlib.nullcontext():
            async with self.breaker.reserve(self.size(dice), timeout=self.patience(dice)) as held:
                self.look()
                await asyncio.sleep(dice.choice([0, 0.001]))
                if self.plan.nested and dice.random() < 0.3:
                    async with self.breaker.reserve(self.size(dice), timeout=self.patience(dice)):
                        await asyncio.sleep(0)
                if dice.random() < 0.2:
                    held.resize(self.size(dice))
            held = await self.breaker.aacquire(self.size(dice), timeout=0.01)
            if dice.random() < 0.5:
                self.shared.append(held)
            else:
                held.release()
        await self.torture.functions.awaited(self.size(dice))

    async def lone_task(self, dice, *, limited=True):
        with contextlib.suppress(*EXPECTED, TimeoutError, ValueError):
            await self.task(dice, limited=limited)

    def tasks(self, dice):
        """Some finish, some are cancelled."""

        async def all_of_them():
            tasks = [asyncio.create_task(self.lone_task(self.dice(dice.random()))) for _ in range(12)]
            await asyncio.sleep(dice.choice([0, 0.001, 0.01]))
            for task in tasks:
                if dice.random() < 0.4 or self.over.is_set():
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run(all_of_them())

    def closing(self, dice):
        """
        An event loop that is closed while some wait in it, and some hold.

        No time limit of asyncio's in it: a coroutine that is collected in the middle of one makes CPython 3.11 crash.
        """
        loop = asyncio.new_event_loop()
        try:
            tasks = [loop.create_task(self.lone_task(self.dice(dice.random()), limited=False)) for _ in range(6)]
            if dice.random() < 0.5:
                tasks[0].cancel()
            loop.run_until_complete(asyncio.sleep(dice.choice([0, 0.001, 0.02])))
        finally:
            loop.close()

    def resting(self, dice):
        """An event loop that does not run for a while, as in a notebook."""
        loop = asyncio.new_event_loop()
        try:
            tasks = [loop.create_task(self.lone_task(self.dice(dice.random()))) for _ in range(4)]
            for _ in range(3):
                loop.run_until_complete(asyncio.sleep(0.005))
                self.over.wait(dice.choice([0.01, 0.1, 1.3]))
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        finally:
            loop.close()

    def asking(self, dice):
        """Ask all the time, and look how old what one goes by is."""
        breaker = self.breaker
        began = time.monotonic()
        with contextlib.suppress(MemoryCircuitBreakerError):
            breaker.check()
        usage = breaker._desk.view.usage
        at = self.machine.tried_at if self.plan.fails or usage is None else usage.at
        self.oldest = max(self.oldest, began - at)
        breaker.allows(self.size(dice))
        if dice.random() < 0.1:
            breaker.describe()
            breaker.health()
            _ = breaker.level, breaker.state, breaker.retry_after, breaker.usage()
        self.look()
        time.sleep(0.002)

    def moving(self, dice):
        """The background and the limit move; and what the breaker was told."""
        machine = self.machine
        if not self.plan.still:
            machine.background = dice.choice([LEAST, dice.randrange(LEAST, int(1.02 * LIMIT))])
            machine.limit_bytes = dice.choice([MOST, dice.randrange(MOST // 2, MOST)])
        if self.plan.modes:
            self.breaker._apply(
                config(
                    machine,
                    relief=dice.random() < 0.5,
                    mode=dice.choice(["enforce", "observe", "off"]),
                    check_interval=dice.choice([0.01, INTERVAL]),
                )
            )
        time.sleep(dice.choice([0.003, 0.03, 0.2]))

    def forking(self, dice):
        """A child that uses the breaker; sometimes from inside of a reservation."""
        held = self.breaker.reserve(dice.randrange(MIB)) if dice.random() < 0.5 else contextlib.nullcontext()
        with held:
            pid = os.fork()
            if pid == 0:
                code = 9
                try:
                    code = self.in_child()
                except BaseException:
                    os.write(2, traceback.format_exc().encode())
                finally:
                    os._exit(code)
        self.wait_for(pid)
        time.sleep(0.01)

    def in_child(self):
        """Return 0 if new books were begun, and are at 0 again in the end."""
        breaker = self.breaker
        self.machine.calm()
        counts = breaker.statistics()
        if counts.reserved_bytes or counts.waiting:
            return 2
        with contextlib.suppress(*EXPECTED):
            with breaker.reserve(1000), breaker.reserve(2000) as inner:
                inner.resize(5000)
                for held in list(self.shared):
                    held.release()
            thread = threading.Thread(target=breaker.acquire(10, timeout=5).release)
            thread.start()
            thread.join()
            asyncio.run(self.torture.functions.awaited(10))
            self.torture.functions.learned(b"x")
        counts = breaker.statistics()
        return 3 if counts.reserved_bytes or counts.waiting or breaker._desk.on_ramp else 0

    def wait_for(self, pid):
        deadline = time.monotonic() + CHILD_SECONDS
        while True:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.kill(pid, signal.SIGUSR1)  # its stacks
                time.sleep(1)
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                self.faults.append("a forked child hangs")
                return
            time.sleep(0.001)
        self.done["children"] += 1
        if status:
            self.faults.append(f"a forked child ended with {os.waitstatus_to_exitcode(status)}")

    # ----- the main thread, where signals go off

    def victim(self, dice):
        """One thing that a signal may come into at any moment."""
        breaker = self.breaker
        way = dice.randrange(9)
        if way <= 2:
            with breaker.reserve(self.size(dice), timeout=self.patience(dice)) as held:
                self.look()
                self.torture.handler.held = held
                if self.plan.nested:
                    with breaker.reserve(self.size(dice), timeout=self.patience(dice)):
                        self.look()
                if way == 1:
                    held.resize(self.size(dice))
        elif way == 3:
            breaker.acquire(self.size(dice), timeout=self.patience(dice)).release()
        elif way == 4:
            self.call(dice, dice.randrange(4))
        elif way == 8:
            # No event loop lives through an exception at any moment: there the handler only asks.
            self.torture.handler.armed = False
            self.call(dice, dice.choice([4, 5]))
        elif way == 5:
            self.torture.functions.learned(b"x" * dice.randrange(1000))
        elif way == 6:
            for _ in self.torture.functions.numbers(3):
                self.look()
        else:
            breaker.allows(self.size(dice))
            breaker.statistics()
            breaker.tick()

    def under_signals(self):
        dice, handler = self.dice("main"), self.torture.handler
        if not self.torture.acts or "signals" in self.torture.acts:
            handler.begin(self)
        until = time.monotonic() + self.plan.seconds
        while time.monotonic() < until:
            if self.torture.acts and "signals" not in self.torture.acts:
                time.sleep(0.01)
                continue
            try:
                self.one(dice)
            except (Interruption, HardInterruption):
                self.done["interruptions"] += 1
            except EXPECTED:
                self.done["refused in main"] += 1
            except (ValueError, RuntimeError) as error:
                self.unless_expected(error)
            except BaseException as error:
                self.faults.append(f"in the main thread: {error!r}")
                traceback.print_exc()
            self.done["main"] += 1
        handler.end()

    def one(self, dice):
        handler = self.torture.handler
        try:
            handler.armed = True
            contextvars.Context().run(self.victim, dice)
        finally:
            handler.armed = False

    def unless_expected(self, error):
        """A resize under what is drawn, and a generator or reservation that a handler had left, are no faults."""
        known = ("nested reservations draw", "only a held reservation", "was released while it grew", "that waits was")
        if not any(each in str(error) for each in known):
            self.faults.append(repr(error))
            traceback.print_exception(error)

    # ----- all of it

    def again_and_again(self, name, act):
        dice = self.dice(name)
        while not self.over.is_set():
            try:
                act(dice)
            except EXPECTED:
                pass
            except (ValueError, RuntimeError) as error:
                self.unless_expected(error)
            except BaseException as error:
                self.faults.append(f"{name}: {error!r}")
                traceback.print_exc()
            self.done[name] += 1

    def run(self):
        acts = [self.reserving] * 5 + [self.acquiring, self.releasing] * 2 + [self.littering, self.calling] * 2
        acts += [self.learning] * 2 + [self.tasks, self.tasks, self.closing, self.resting, self.asking, self.moving]
        if hasattr(os, "fork"):
            acts.append(self.forking)
        if self.torture.acts:
            acts = [act for act in acts if act.__name__ in self.torture.acts]
        self.begin()
        threads = [
            threading.Thread(target=self.again_and_again, args=(f"{act.__name__} {n}", act), daemon=True)
            for n, act in enumerate(acts)
        ]
        for thread in threads:
            thread.start()
        self.under_signals()
        self.finish(threads)

    def begin(self):
        plan, machine = self.plan, self.machine
        machine.calm()
        self.breaker._apply(config(machine, relief=plan.relief))
        self.breaker.tick()
        machine.fails, machine.sleeps = plan.fails, 0.02
        sys.setswitchinterval(plan.switches)
        if plan.collects:
            gc.set_threshold(20, 3, 3)
        faulthandler.dump_traceback_later(plan.seconds + HANG_SECONDS, exit=True)

    def finish(self, threads):
        """Calm down, and see that all of it is over."""
        self.over.set()
        began, told = time.monotonic(), False
        while any(thread.is_alive() for thread in threads):  # or else the watchdog ends it
            self.machine.calm()
            if self.plan.modes:
                self.breaker._apply(config(self.machine, relief=self.plan.relief))
            gc.collect()
            while self.shared:
                self.shared.popleft().release()
            for thread in threads:
                thread.join(0.02)
            if not told and time.monotonic() - began > HANG_SECONDS / 2:
                told = True
                self.tell()
        self.drained = time.monotonic() - began
        gc.set_threshold(700, 10, 10)
        sys.setswitchinterval(5e-3)
        self.machine.calm()
        self.look_at_the_books()
        faulthandler.cancel_dump_traceback_later()

    def tell(self):
        """Say how the books are, before the watchdog ends it."""
        desk = self.breaker._desk
        print(
            f"\nhangs: {desk.reserved_bytes} booked, room {desk.room_bytes}, {desk.permits} permits, {desk.on_ramp} on ramp"
        )
        print(desk.view)
        for grant in list(desk.grants):
            print(f"  grant of {grant()!r}: {grant.nbytes} of {grant.asked_bytes}, held by", end=" ")
            print([type(each).__name__ for each in gc.get_referrers(grant())][:5])
        for waiter in [*desk.queue, *desk.zeros]:
            print(
                f"  waiter {waiter.grant.asked_bytes}, {waiter.presence()}, {waiter.verdict}, settled {waiter.settled}"
            )
        sys.stdout.flush()

    def look_at_the_books(self):
        breaker, gate = self.breaker, self.breaker._gate
        while self.shared:
            self.shared.popleft().release()
        gc.collect()
        gc.collect()
        breaker.tick()
        counts, desk = breaker.statistics(), breaker._desk
        books = {
            "reserved": counts.reserved_bytes,
            "waiting": counts.waiting,
            "on the ramp": desk.on_ramp,
            "grants": len(desk.grants),
            "before the gate": sum(each() is not None for each in gate._queue),
            "past the gate": len(_alive(gate._passed)),
            "measured": len(gate._runs()),
        }
        left = {name: count for name, count in books.items() if count}
        if left:
            self.faults.append(f"left in the books: {left}")
        for each in self.machine.cells:
            self.faults.append(f"a job did not end: {each}")
        with breaker.reserve(100 * MIB, timeout=None):  # whatever was before: it goes on
            pass
        allowed = 2 * INTERVAL + SLOP_SECONDS
        if self.torture.ages and self.oldest > allowed:
            self.faults.append(f"went by a reading {self.oldest:.2f} s old; {allowed} are allowed")


class Handler:
    """The signal handler: raises where it may, or uses the breaker; then sets the next signal."""

    def __init__(self):
        self.armed = False
        self.round = None
        self.held = None
        self.calls = 0

    def begin(self, round_):
        self.round, self.dice = round_, round_.dice("handler")
        signal.signal(signal.SIGALRM, self)
        self.next()

    def end(self):
        self.round = None
        self.held = None  # an exception may have come before it was left
        signal.setitimer(signal.ITIMER_REAL, 0)

    def next(self):
        if self.round is not None:
            signal.setitimer(signal.ITIMER_REAL, self.dice.uniform(20e-6, 200e-6))

    def __call__(self, number, frame):
        self.calls += 1
        try:
            if self.dice.random() < 0.5:
                with contextlib.suppress(*EXPECTED, ValueError, RuntimeError):
                    self.use(self.round)
        finally:
            self.next()
        if self.armed and self.dice.random() < 0.3:
            self.armed = False
            raise self.dice.choice([Interruption, HardInterruption])

    def use(self, round_):
        if round_ is None:
            return
        dice, breaker = self.dice, round_.breaker
        way = dice.randrange(9)
        if way == 0:
            breaker.check()
        elif way == 1:
            breaker.allows(round_.size(dice))
        elif way == 2:
            with breaker.reserve(round_.size(dice)):
                round_.look()
        elif way == 3:
            round_.shared.append(breaker.acquire(round_.size(dice)))
        elif way == 4 and round_.shared:
            with contextlib.suppress(IndexError):
                round_.shared.pop().release()
        elif way == 5 and self.held is not None:
            self.held.resize(round_.size(dice))
        elif way == 6 and self.held is not None:
            self.held.release()
        elif way == 7:
            gc.collect(0)
        else:
            breaker.statistics()


class Functions:
    """Guarded functions of all four kinds."""

    def __init__(self, breaker):
        @breaker.guard(cost=lambda nbytes, fails: nbytes, timeout=0.01)
        def plain(nbytes, fails):
            if fails:
                raise Broken

        @breaker.guard(cost="3 MiB", timeout=0.01)
        async def awaited(nbytes):
            await asyncio.sleep(0)

        @breaker.guard(cost="7 MiB")
        def numbers(count):
            yield from range(count)

        @breaker.guard(cost="5 MiB", timeout=0.05)
        async def anumbers(count):
            for number in range(count):
                await asyncio.sleep(0)
                yield number

        async def walk(count):
            async for number in anumbers(count):
                if number == 2:
                    break

        @breaker.guard
        def checked():
            return 1

        @breaker.guard(cost="auto", timeout=0.2)
        def learned(text):
            return len(text * 3)

        @breaker.guard(cost="auto", timeout=0.2)
        async def alearned(number):
            await asyncio.sleep(0)
            return len(bytes(number))

        @breaker.guard(cost="auto", timeout=0.2)
        def learned_steps(count):
            yield from range(count)

        self.plain, self.awaited, self.numbers, self.walk, self.checked = plain, awaited, numbers, walk, checked
        self.learned, self.alearned, self.learned_steps = learned, alearned, learned_steps

    @staticmethod
    def raw(number):
        return number + 1


class Unlocked(contextlib.nullcontext):
    """A lock that is none."""

    def acquire(self):
        """Nothing."""

    def release(self):
        """Nothing."""


class Asking(logging.Handler):
    """A log handler that asks the breaker it hears of."""

    def __init__(self, breaker):
        super().__init__()
        self.breaker = breaker

    def createLock(self):  # noqa: N802 - logging's name
        """None: a signal's exception between logging's `acquire` and its `try` would keep it for ever (3.11, 3.12)."""
        self.lock = Unlocked()

    def emit(self, record):
        self.breaker.allows(1)


class Torture:
    """All rounds on one breaker."""

    def __init__(self, seed, *, ages, acts):
        self.seed, self.ages, self.acts = seed, ages, acts
        self.machine = Machine()
        self.breaker = MemoryCircuitBreaker(sampler=self.machine, check_interval=INTERVAL, name="tortured")
        self.functions = Functions(self.breaker)
        self.handler = Handler()
        self.dice = random.Random(f"{seed}/listeners")
        self.breaker.on_change.connect(self.listener)
        self.breaker.on_overrun.connect(self.listener)
        self.log = Asking(self.breaker)
        self.import_all()

    def import_all(self):
        """A child forked while another thread imports a module can never import it: a limit of CPython's."""
        self.functions.learned(b"x")
        with contextlib.suppress(MemoryCircuitBreakerError):
            asyncio.run(self.functions.awaited(2 * LIMIT))
        from memguard.breaker import _loop  # noqa: F401

    def listener(self, change):
        """Raise, or ask back, or hold for a moment."""
        way = self.dice.randrange(5)
        if way == 0:
            raise Broken
        if way == 1:
            self.breaker.allows(MIB)
        elif way == 2:
            self.breaker.tick()
        elif way == 3:
            with contextlib.suppress(MemoryCircuitBreakerError), self.breaker.reserve(MIB):
                pass

    def run(self, seconds, only):
        """Run rounds until *seconds* are over, or *only* one; return how many had faults."""
        done, faulty, oldest, began = Counter(), 0, 0.0, time.monotonic()
        number = 0 if only is None else only
        while True:
            each = Round(self, number)
            print(f"round {number} of seed {self.seed}, {each.plan.words()}:", end=" ", flush=True)
            each.run()
            done.update({name.split(" ")[0]: count for name, count in tally(each.done).items()})
            oldest = max(oldest, each.oldest)
            print(
                f"{sum(each.done.values())} acts, at most {each.most / MIB:.0f} MiB booked, {each.oldest:.2f} s old,"
                f" over in {each.drained:.1f} s",
                flush=True,
            )
            for words, times in Counter(each.faults).most_common(5):
                print(f"    FAULT {times} times: {words}", flush=True)
            faulty += bool(each.faults)
            number += 1
            if only is not None or time.monotonic() - began >= seconds:
                break
        counts = self.breaker.statistics()
        print(dict(done), f"{self.handler.calls} signals")
        print(
            f"python {sys.version.split()[0]}, seed {self.seed}: {number if only is None else 1} rounds in"
            f" {time.monotonic() - began:.0f} s, {counts.admitted} admitted, {counts.refused} refused,"
            f" {counts.readings} readings, oldest {oldest:.2f} s, {counts.opened} times open, rounds with faults: {faulty}"
        )
        return faulty


def tally(done):
    """Return *done* by kind of act, whichever thread did it."""
    kinds = Counter()
    for name, count in done.items():
        kinds[name.split(" ")[0]] += count
    return kinds


def config(machine, *, relief, mode="enforce", check_interval=INTERVAL):
    return make_config(
        open_at="80%",
        close_at=None,
        warn_at=None,
        limit=None,
        check_interval=check_interval,
        relief=relief,
        mode=mode,
        sampler=machine,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("MEMGUARD_TORTURE_SECONDS", "600")))
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--round", type=int, default=None, help="this one alone")
    parser.add_argument("--acts", nargs="*", default=(), help="these alone, to narrow a fault down; 'signals' is one")
    parser.add_argument("--no-ages", action="store_true", help="do not judge how old readings are")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    logging.getLogger("asyncio").disabled = True
    sys.unraisablehook = lambda unraisable: None  # a signal's exception in a finalizer
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    torture = Torture(seed, ages=not options.no_ages, acts=options.acts)
    log = logging.getLogger("memguard")
    log.propagate = False
    log.addHandler(torture.log)
    return 1 if torture.run(options.seconds, options.round) else 0


if __name__ == "__main__":
    raise SystemExit(main())
