"""
The one decorator of all steps, and the two ways to run many at once.

A step is a Prefect task inside a flow run, and the same function with the same
retries where there is no Prefect server: after a blackout there may be none.
"""

from __future__ import annotations

import contextvars
import functools
import inspect
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from graphlib import TopologicalSorter
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential_jitter,
)

from blocks.errors import Defect, MeshError, Transient
from tasks import stopping

if TYPE_CHECKING:
    from prefect import Task
    from prefect.client.schemas.objects import State

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

RETRIES = 4
BACKOFF_SECONDS = 0.25


def in_flow_run() -> bool:
    """Whether this thread works for a Prefect flow run; never imports Prefect to find out."""
    context = sys.modules.get("prefect.context")
    return context is not None and context.FlowRunContext.get() is not None


def _may_pass(error: object) -> bool:
    # A step within a step has repeated already: the outer one would multiply it.
    return isinstance(error, Transient) and not error.repeated


def _is_transient(_task: object, _run: object, state: State[Any]) -> bool:
    # Prefect asks before each retry; only what may pass by itself is repeated.
    return _may_pass(state.result(raise_on_failure=False))


class Step(Generic[P, R]):
    """A function that is a task of its own inside a flow run; `fn` is the bare function."""

    def __init__(self, name: str, fn: Callable[P, R]) -> None:
        self.run_name = name
        self.fn = fn
        functools.update_wrapper(self, fn)
        self.__signature__ = inspect.signature(fn)

    @functools.cached_property
    def task(self) -> Task[P, R]:
        """The same as a Prefect task; made when it is first needed."""
        from prefect import task
        from prefect.cache_policies import NO_CACHE
        from prefect.tasks import exponential_backoff

        return task(
            name=self.fn.__name__,
            task_run_name=self.run_name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=RETRIES,
            retry_delay_seconds=exponential_backoff(backoff_factor=BACKOFF_SECONDS),
            retry_jitter_factor=0.5,
            retry_condition_fn=_is_transient,
        )(_without_causes(self.fn))

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run it: a stop point first, then up to `RETRIES` more attempts on `Transient`."""
        stopping.check()
        try:
            return self._run(*args, **kwargs)
        except Transient as error:
            error.repeated = True
            raise

    def _run(self, *args: P.args, **kwargs: P.kwargs) -> R:
        if in_flow_run():
            return self.task(*args, **kwargs)
        for attempt in Retrying(
            retry=retry_if_exception(_may_pass),
            stop=stop_after_attempt(RETRIES + 1),
            wait=wait_exponential_jitter(multiplier=BACKOFF_SECONDS, max=8.0),
            sleep=stopping.pause,
            reraise=True,
        ):
            with attempt:
                return self.fn(*args, **kwargs)
        raise AssertionError("unreachable")  # tenacity returns or raises


def step(name: str) -> Callable[[Callable[P, R]], Step[P, R]]:
    """
    Make a function a step whose run is called `name`, filled in from its arguments.

    Never cached (a cached probe reports a past that may be gone), never
    persisted (a result may hold a secret), retried only on `Transient`, with
    jitter and a bound.
    """
    return functools.partial(Step, name)


def _without_causes(fn: Callable[P, R]) -> Callable[P, R]:
    # Prefect logs an exception with all its causes and puts its text into a state:
    # a client library's error may quote a request with its token.
    @functools.wraps(fn)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return fn(*args, **kwargs)
        except MeshError as error:
            raise error from None
        except Exception as error:  # noqa: BLE001 - whatever it is, its text stays here
            raise Defect.of(error) from None

    return guarded


def _begin(function: Callable[[T], R], item: T) -> R:
    stopping.check()
    return function(item)


def fan_out(function: Callable[[T], R], items: Iterable[T], *, workers: int = 16) -> list[R]:
    """
    `function` on every item at once, in threads; results in the items' order.

    All are waited for; then the first error, in the items' order, is raised.
    """
    work = list(items)
    if len(work) <= 1:
        return [_begin(function, item) for item in work]
    with ThreadPoolExecutor(min(workers, len(work))) as pool:
        futures = [
            pool.submit(contextvars.copy_context().run, _begin, function, item) for item in work
        ]
        wait(futures)
    return [future.result() for future in futures]


def in_order(
    needs: Mapping[K, Iterable[K]], function: Callable[[K], None], *, workers: int = 32
) -> None:
    """
    `function` on every node as soon as all it needs are done, in threads.

    After a failure nothing new starts; what runs is waited for, then the first
    error is raised.
    """
    sorter = TopologicalSorter(needs)
    sorter.prepare()
    failed: BaseException | None = None
    with ThreadPoolExecutor(workers) as pool:
        running: dict[Future[None], K] = {}
        while True:
            if failed is None:
                for node in sorter.get_ready():
                    running[pool.submit(contextvars.copy_context().run, _begin, function, node)] = (
                        node
                    )
            if not running:
                break
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                node = running.pop(future)
                if (error := future.exception()) is not None:
                    failed = failed or error
                else:
                    sorter.done(node)
    if failed is not None:
        raise failed
