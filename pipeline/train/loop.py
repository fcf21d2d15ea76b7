"""The training loop: a plain function that runs under Ray Train, under torchrun, or alone.

A step is one micro-batch of every lane. All ranks first agree on a plan (how many targets, shall we
stop), then compute, then update; between two steps the state of the run is a few numbers, a
position a lane, and the tensors, which is what a checkpoint holds.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from typing import Any

import torch

from pipeline.config import Recipe
from pipeline.errors import LonghaulError, warn
from pipeline.manifest import Dataset, open_dataset
from pipeline.progress import Bar
from pipeline.stream.lane import Position
from pipeline.stream.order import seed_of
from pipeline.stream.stream import DIGEST, RankStep, Stream
from pipeline.tracking.tracker import Tracker
from pipeline.train import checkpoint
from pipeline.train.assembly import build_engine
from pipeline.train.checkpoint import Best, Checkpoint, DataState, TrainState
from pipeline.train.engine import Engine
from pipeline.train.kept_items import keep_items
from pipeline.train.node_load import NodeLoad
from pipeline.train.optimizer import learning_rate
from pipeline.train.plan import Plan, Tally
from pipeline.train.run import (
    RunState,
    State,
    StopFile,
    open_run,
    record_attempt,
    stop_reason,
    write_state,
)
from pipeline.train.saving import Saver
from pipeline.train.validation import validate
from pipeline.train.warm_start import begin_with
from pipeline.world import World


class Diverged(LonghaulError):
    """The gradient of ``step`` is not one to go on with; another attempt is to pass over it."""

    def __init__(self, step: int, message: str) -> None:
        super().__init__(message)
        self.step = step


def train(recipe: Recipe, world: World, bar: Bar | None = None) -> RunState:
    """Run or resume the recipe's run until it is done or asked to stop; how it then stands.

    Raises LonghaulError on every rank where any rank cannot go on.
    """
    skipped: list[int] = []
    while True:
        try:
            return _attempt(recipe, world, bar, skipped)
        except Diverged as error:
            skipped.append(error.step)
            if world.rank == 0:
                warn(f"{error}: going back to the newest checkpoint and passing over that step")


def _attempt(recipe: Recipe, world: World, bar: Bar | None, skipped: list[int]) -> RunState:
    """Train once; ``skipped`` are steps that earlier attempts of this process found bad."""
    attempt = world.on_rank_zero(lambda: open_run(recipe))
    stands = RunState(state="running", attempt=attempt, step=0, steps=recipe.train.steps)
    training: Training | None = None
    try:
        training = Training(recipe, world, attempt, bar, skipped)
        return training.run()
    except Diverged:
        raise  # not the end of the run
    except BaseException as error:
        if world.rank == 0:
            step = training.state.step if training else 0
            reason = str(error) or type(error).__name__
            update = {"state": "failed", "step": step, "reason": reason}
            with contextlib.suppress(LonghaulError):  # the error itself is what has to be told
                write_state(recipe.run_url, stands.model_copy(update=update))
        raise
    finally:
        if training is not None:
            training.close()


class Training:
    """One attempt at a run, on one rank."""

    def __init__(
        self,
        recipe: Recipe,
        world: World,
        attempt: int,
        bar: Bar | None,
        skipped: Sequence[int] = (),
    ) -> None:
        self.recipe, self.world, self.attempt = recipe, world, attempt
        self._bar = bar
        self._poll = True
        self._tracker: Tracker | None = None
        self._outcome: State = "failed"  # until it is told otherwise
        self.dataset: Dataset = open_dataset(recipe.data.path)
        self.stream = Stream(
            self.dataset,
            recipe.data,
            seed=recipe.train.seed,
            rank=world.rank,
            world_size=world.world_size,
            objective=recipe.train.objective,
            reading=recipe.reading,
        )
        self.engine: Engine = build_engine(recipe, self.dataset, world)
        self.saver = Saver(recipe, self.dataset.manifest, world, attempt)
        self._new = False
        self.state = self._resume(skipped)
        self._tally = Tally(world.device, self.engine.clock)
        self._load = NodeLoad(world)
        self._stop_file = StopFile(recipe.run_url, watched=world.rank == 0)
        world.on_rank_zero(self._begin_records)

    def _begin_records(self) -> None:
        """Begin what the first rank writes of this attempt beside its state."""
        world_size = self.world.world_size
        origin = self.state.begun_with
        begun = None if origin is None else origin.model_dump()
        record_attempt(self.recipe, self.attempt, world_size, self.dataset.fingerprint, begun)
        keep_items(self.recipe.run_url, self.dataset, anew=self._new)
        facts = {"world_size": world_size, "begun_with": begun}
        self._tracker = Tracker(self.recipe, self.dataset, self.attempt, facts)

    def _resume(self, skipped: Sequence[int]) -> TrainState:
        """Take over the newest checkpoint that every rank can read its part of, or begin."""

        def restore(kept: Checkpoint) -> None:
            # Other data is refused below, whatever else the checkpoint may be unfit for.
            if kept.state.data.fingerprint == self.dataset.fingerprint:
                self.engine.restore(kept.read, kept.state.updates)

        found = checkpoint.newest(self.recipe.run_url, restore, warn, self.world)
        if found is None:
            self._new = True
            self.stream.start(0)
            data = DataState(fingerprint=self.dataset.fingerprint, epoch=0, positions={})
            begun = begin_with(self.recipe, self.dataset, self.engine, self.world, warn)
            return TrainState(step=0, data=data, skipped=sorted(skipped), begun_with=begun)
        state = found[0].state
        self._check_data(state.data)
        positions = {lane: Position(*at) for lane, at in state.data.positions.items()}
        self.stream.start(state.data.epoch, positions)
        return state.model_copy(update={"skipped": sorted({*state.skipped, *skipped})})

    def _check_data(self, data: DataState) -> None:
        here = self.dataset.fingerprint
        if data.fingerprint != here:
            raise LonghaulError(
                f"run {self.recipe.name} was trained on other data: its checkpoint names "
                f"fingerprint {data.fingerprint[:12]}, {self.dataset.url} has {here[:12]}"
            )

    def run(self) -> RunState:
        """Train until the last step, the end of patience, or a request to stop."""
        steps = self.recipe.train.steps
        self._tell("running")
        if self._new and self.state.begun_with is not None:
            self._save()  # from here on the run needs its source no more
        if self._bar is not None:
            self._bar.update(self.state.step, steps)
        while self.state.step < steps and not self._out_of_patience():
            rank_step, plan = self._next()
            if plan.stop:
                self._save()
                self.saver.finish()
                reason = self.world.on_rank_zero(lambda: stop_reason(self.recipe.run_url))
                return self._tell("preempted", reason)
            if self.state.step in self.state.skipped:
                self._pass_over(plan)
            else:
                self._train(rank_step, plan)
            self._after_step()
            if plan.load:
                self._log({"step": self.state.step, **self._load.sample()})
            if plan.save:  # this node is about to go: what is not committed soon is lost
                self.world.save_wanted = False
                with self.engine.clock.timed("saving"):
                    self._save()
                    self.saver.finish()
        self.saver.finish()
        return self._tell("done", "no better validation" if self._out_of_patience() else None)

    def _next(self) -> tuple[RankStep, Plan]:
        """The next step that has anything to train, in this epoch or the next one."""
        if self._poll:
            self.world.poll(self.state.step)
        self.world.stop_wanted |= self._stop_file.seen()
        for _ in range(2):
            positions = self.stream.positions
            mine, plan = self._read_and_agree()
            if plan.stop:
                # What was just taken is not trained: the positions of before are the truth.
                self.stream.positions = positions
                return mine, plan
            if plan.segments:
                return mine, plan
            self.stream.start(self.stream.epoch + 1)
        raise LonghaulError(
            f"{self.dataset.url} has nothing to train on: no user has a training part long enough "
            "for data.window"
        )

    def _read_and_agree(self) -> tuple[RankStep, Plan]:
        """Read this rank's part and sum all parts up; a rank that cannot read or save stops all."""
        problem = self.saver.problem()
        mine = RankStep([], 0, 0, 0, 0, {}, 0.0)
        if problem is None:
            try:
                mine = self.stream.next_step()
            except LonghaulError as error:
                problem = error
        work = [mine.targets, mine.tokens, mine.segments, mine.digest]
        asked = [self.world.stop_wanted, self.world.save_wanted]
        due = [self.world.poll_due(), self._load.due()]
        stands = [problem is not None, self.saver.uploaded()]
        with self.engine.clock.timed("agree"):
            sums = self.world.sum_integers([*work, *map(int, asked + due + stands)]).tolist()
        targets, tokens, segments, digest, stop, save, poll, load, failed, uploaded = sums
        if failed:
            self.world.agree(problem)
        if uploaded == self.world.world_size:
            self.saver.commit()
        self._poll = poll > 0
        return mine, Plan(targets, tokens, segments, digest % DIGEST, stop > 0, save > 0, load > 0)

    def _train(self, mine: RankStep, plan: Plan) -> None:
        config, step = self.recipe.train, self.state.step
        for micro in mine.micro:
            torch.manual_seed(seed_of("step", config.seed, step, micro.lane))
            self._tally.loss += self.engine.backward(micro.batch, plan.targets)
        lr = learning_rate(step, config.steps, config.optimizer)
        norm = self.engine.update(lr)
        self._check(norm)
        self._tally.add(plan, mine.waited, lr, norm)
        self.state = self.state.model_copy(
            update={
                "step": step + 1,
                "targets_seen": self.state.targets_seen + plan.targets,
                "tokens_seen": self.state.tokens_seen + plan.tokens,
                "validation": None,
            }
        )

    def _check(self, norm: float) -> None:
        """Raise Diverged where the step is to be passed over, LonghaulError where the run ends."""
        divergence, step = self.recipe.train.divergence, self.state.step
        limit = divergence.gradient_norm or math.inf
        if math.isfinite(norm) and norm <= limit:
            return
        wrong = f"above {limit:g}" if math.isfinite(norm) else "not finite"
        message = f"the gradient at step {step} is {wrong} ({norm:g})"
        # What was saved before this step is whole, and is what another attempt begins with.
        self.saver.finish()
        if divergence.policy == "skip" and len(self.state.skipped) < divergence.most:
            raise Diverged(step, message)
        raise LonghaulError(
            f"{message}: lower train.optimizer.lr, or use precision fp32"
            if divergence.policy == "stop"
            else f"{message}; steps passed over before: {self.state.skipped}"
        )

    def _pass_over(self, plan: Plan) -> None:
        """A step that is read and not trained."""
        step = self.state.step
        self._log({"step": step, "skipped_targets": plan.targets})
        self.state = self.state.model_copy(update={"step": step + 1, "validation": None})

    def _after_step(self) -> None:
        """Log, validate and save as the recipe wants it after this step."""
        config, step = self.recipe.train, self.state.step
        last = step == config.steps
        if (step % config.log_every == 0 or last) and self._tally.targets:
            self._log(self._tally.summary(self.world, self.state, self.stream.epoch))
            self._tally = Tally(self.world.device, self.engine.clock)
        improved = False
        if config.validation and (step % config.validation.every == 0 or last):
            with self.engine.clock.timed("validating"):
                improved = self._validate()
        if improved or last or step % config.checkpoint_every == 0 or self._out_of_patience():
            with self.engine.clock.timed("saving"):
                self._save()

    def _validate(self) -> bool:
        """Rank the validation targets; True where no earlier validation was as good."""
        config = self.recipe.train.validation
        assert config is not None
        began = time.perf_counter()
        with self.engine.scoring():
            # Before ranking: a forward pass of ZeRO 3 lets the weights go again.
            told = self.engine.model.diagnostics()
            metrics = validate(self.dataset, self.engine.scorer(), self.recipe, self.world)
        if config.metric not in metrics:
            raise LonghaulError(
                f"train.validation.metric {config.metric!r} is not computed; there are: "
                f"{', '.join(sorted(metrics))}"
            )
        value, best = metrics[config.metric], self.state.best
        improved = best is None or value > best.value
        self.state = self.state.model_copy(
            update={
                "best": Best(step=self.state.step, value=value) if improved else best,
                "validations_without_best": 0
                if improved
                else self.state.validations_without_best + 1,
                "validation": metrics,
            }
        )
        record = {f"validation/{name}": value for name, value in metrics.items()}
        record |= {f"model/{name}": value for name, value in told.items()}
        self._log({"step": self.state.step, **record, "seconds": time.perf_counter() - began})
        return improved

    def _out_of_patience(self) -> bool:
        config = self.recipe.train.validation
        if config is None or config.patience is None:
            return False
        return self.state.validations_without_best >= config.patience

    def _save(self) -> None:
        """Copy the state; it is written while training goes on."""
        positions: dict[int, tuple[int, int]] = {}
        for ranks in self.world.gather(self.stream.positions):
            positions |= {lane: (place.group, place.segment) for lane, place in ranks.items()}
        data = DataState(
            fingerprint=self.dataset.fingerprint, epoch=self.stream.epoch, positions=positions
        )
        self.state = self.state.model_copy(update={"data": data})
        self.saver.begin(self.state, self.engine)
        if self._tracker:
            self._tracker.flush()

    def _log(self, record: dict[str, Any]) -> None:
        if self._tracker is None:
            return
        self._tracker.log(record)
        if self._bar is not None and "loss" in record:
            note = f"loss {record['loss']:.4f}  {record['targets_per_second']:,.0f} targets/s"
            if self.state.best is not None:
                assert self.recipe.train.validation is not None
                note += f"  best {self.recipe.train.validation.metric} {self.state.best.value:.4f}"
            self._bar.update(self.state.step, self.recipe.train.steps, note)

    def _tell(self, state: State, reason: str | None = None) -> RunState:
        stands = RunState(
            state=state,
            attempt=self.attempt,
            step=self.state.step,
            steps=self.recipe.train.steps,
            reason=reason,
        )
        if self.world.rank == 0:
            write_state(self.recipe.run_url, stands)
        if state != "running":
            self._outcome = state
        return stands

    def close(self) -> None:
        """Stop reading ahead and end the tracking."""
        self.stream.close()
        self._stop_file.close()
        if self._tracker is not None:
            self._tracker.close(self._outcome, self.state.best)
