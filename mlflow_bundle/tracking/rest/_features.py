"""What a tracking server offers and how it is divided: its kinds of entities, its workspaces, and requests side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UnsetType

from mlflow_bundle._parallel import bounded_map
from mlflow_bundle.errors import AuthError, ServerError
from mlflow_bundle.kinds import KINDS
from mlflow_bundle.records import Experiment, Problem
from mlflow_bundle.tracking._rest import API, RefusedError, RestClient
from mlflow_bundle.tracking.rest._answers import experiments
from mlflow_bundle.tracking.rest._releases import FIELDS_SINCE, Release, release_of

__all__ = ["API3", "KNOWN", "TRACES_3", "Features", "SourceServer", "Workspaced"]

#: Where the endpoints of entities since MLflow 3 live.
API3: Final = "/api/3.0/mlflow/"
_NOT_PERMITTED: Final = 403
_INVALID: Final = "INVALID_PARAMETER_VALUE"
_NOT_IMPLEMENTED: Final = 501
_DEFAULT: Final = "default"
_NEWEST: Final[Release] = (99, 0)
#: Traces by version 3 of the API, which keeps their ids. Servers from 2.14 on know version 2.
TRACES_3: Final = "trace by version 3"
#: The newest release whose answers this version was written for.
KNOWN: Final[Release] = (3, 18)
#: The first release of each kind, from which on its endpoints are missing only where something before the server hides them.
_SINCE: Final[Mapping[str, Release]] = {
    "registered_model": (1, 30),
    "trace": (2, 14),
    "logged_model": (3, 0),
    "webhook": (3, 3),
    "evaluation_dataset": (3, 4),
    "scorer": (3, 4),
    "gateway_endpoint": (3, 8),
    "issue": (3, 11),
    "budget_policy": (3, 11),
    "guardrail": (3, 12),
    "label_schema": (3, 14),
    "review_queue": (3, 14),
    "mcp_server": (3, 15),
    "skill": (3, 18),
}
_WORKSPACES_SINCE: Final[Release] = (3, 10)

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Probe(NamedTuple):
    """A request that reads next to nothing and tells whether the server knows some kinds. With a body it is a POST. A kind
    that several probes name is there when one of them is answered."""

    kinds: tuple[str, ...]
    path: str
    params: Mapping[str, Any] = {}
    body: Mapping[str, Any] | None = None
    #: Whether every server that can answer takes it, so that a refusal of what it asks says that there is no store for it.
    plain: bool = False


_ONE: Final = {"max_results": 1}
_GATEWAY: Final = ("gateway_secret", "gateway_model_definition", "gateway_endpoint", "budget_policy", "guardrail")
_IN_DEFAULT: Final = [{"type": "MLFLOW_EXPERIMENT", "mlflow_experiment": {"experiment_id": "0"}}]
#: Listing label schemas would write into the server, so that one that does not exist is asked for.
_PROBES: Final = (
    _Probe(("trace", TRACES_3), f"{API3}traces/search", body={"locations": _IN_DEFAULT, **_ONE}),
    _Probe(("trace",), f"{API}traces", {"experiment_ids": "0", **_ONE}),
    _Probe(("logged_model",), f"{API}logged-models/search", body={"experiment_ids": ["0"], **_ONE}),
    _Probe(("registered_model", "model_version"), f"{API}registered-models/search", _ONE, plain=True),
    _Probe(("evaluation_dataset", "dataset_record"), f"{API3}datasets/search", body=_ONE),
    _Probe(("scorer",), f"{API3}scorers/list", {"experiment_id": "0"}),
    _Probe(("label_schema",), f"{API3}label-schemas/get", {"schema_id": "ls-none"}),
    _Probe(("review_queue",), f"{API3}review-queues/get", {"queue_id": "rq-none"}),
    _Probe(("issue",), f"{API3}issues/search", body=_ONE),
    _Probe(("webhook",), f"{API}webhooks", _ONE),
    _Probe(_GATEWAY[:3], f"{API3}gateway/endpoints/get", {"endpoint_id": "e-none"}),
    _Probe(("budget_policy",), f"{API3}gateway/budgets/list", _ONE),
    _Probe(("guardrail",), f"{API3}gateway/guardrails/list", _ONE),
    _Probe(("mcp_server", "mcp_server_version", "mcp_access_endpoint"), f"{API3}mcp-servers", _ONE),
    _Probe(("skill", "skill_version"), f"{API3}skills", _ONE),
)


class ServerInfo(msgspec.Struct):
    """The answer of ``server-info``, which servers have since 3.9; it says whether there are workspaces since 3.10."""

    #: All that servers of 3.9 say.
    store_type: str | None = None
    workspaces_enabled: bool | None = None
    features_enabled: dict[str, bool] = {}
    #: Servers say it since 3.18.
    artifact_serving_enabled: bool | None = None


class _Named(msgspec.Struct):
    name: str


class _Workspaces(msgspec.Struct):
    workspaces: tuple[_Named, ...] = ()


class Workspaced(NamedTuple):
    """A client for one workspace. ``name`` is None on servers of releases that know no workspaces."""

    name: str | None
    client: RestClient


class Features:
    """What a server offers, which is asked once: a source and a target know it in the same way.

    ``each`` calls a function for several items, side by side where it can. A kind that the server knows and this user may not
    touch (403) is offered: what is done with it says whether he may.

    Raises:
        AuthError: the server does not know the user at all.
        ServerError: the server fails.
    """

    def __init__(self, client: RestClient, each: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]) -> None:
        self._client = client
        self._each = each
        self._hidden: set[str] = set()

    @cached_property
    def info(self) -> ServerInfo:
        """What ``server-info`` says; empty where there is no such thing."""
        try:
            info: ServerInfo = self._client.get_json(f"{API3}server-info", answer=ServerInfo)
        except (RefusedError, AuthError):
            return ServerInfo()
        return info

    @cached_property
    def offered(self) -> frozenset[str]:
        """The kinds of ``_PROBES`` that the server has, ``TRACES_3``, and workspaces where they are enabled."""
        found: set[str] = {"workspace"} if self.info.workspaces_enabled else set()
        gateway = self.info.features_enabled.get("gateway", True)
        probes = [probe for probe in _PROBES if gateway or probe.kinds[0] not in _GATEWAY]
        for probe, there in zip(probes, self._each(self._answers, probes), strict=True):
            found.update(probe.kinds if there else ())
        return frozenset(found)

    @cached_property
    def absent(self) -> tuple[str, ...]:
        """The kinds that the server does not have or has not switched on, in archive order, then fields of those it has."""
        asked = {"workspace", *(kind for probe in _PROBES for kind in probe.kinds)}
        kinds = [kind for kind in KINDS if kind in asked and kind not in self.offered]
        fields = [
            f"{kind}.{field}"
            for kind, names in FIELDS_SINCE.items()
            for field, since in names.items()
            if kind not in kinds and self.release < since
        ]
        return (*kinds, *fields)

    def notes(self) -> list[str]:
        """Reasons to think that there is more than the server shows, a sentence each."""
        version = self._client.version()
        if not version:
            return []
        release, offered = release_of(version), self.offered
        said = []
        if release > KNOWN:
            newest = ".".join(map(str, KNOWN))
            said.append(f"the server is MLflow {version}: what releases after {newest} added is not read")
        if release >= _WORKSPACES_SINCE and self.info.workspaces_enabled is None:
            said.append("the server does not say whether it has workspaces: only the default one is read")
        said += [
            f"the server is MLflow {version} and has no endpoint for {kind}: none were read (is there a proxy before it?)"
            for kind, since in _SINCE.items()
            if kind in self._hidden and kind not in offered and release >= since
        ]
        return said

    @property
    def release(self) -> Release:
        """The release of the server; a service that speaks MLflow's API and names none is taken for a new one."""
        version = self._client.version()
        return release_of(version) if version or self._client.uri.startswith("http") else _NEWEST

    def _answers(self, probe: _Probe) -> bool:
        try:
            if probe.body is None:
                self._client.get_json(probe.path, probe.params)
            else:
                self._client.post_json(probe.path, probe.body)
        except RefusedError as error:
            if error.endpoint_missing:
                self._hidden.update(probe.kinds)
            # MLflow 1 has no registry where experiments and runs are files.
            return not (error.endpoint_missing or (probe.plain and error.error_code == _INVALID))
        except AuthError as error:
            if error.status != _NOT_PERMITTED:
                raise
        except ServerError as error:
            if error.status != _NOT_IMPLEMENTED:
                raise
            return False
        return True


class SourceServer:
    """A server that is being read, asked once what it offers.

    A server with workspaces is read whole, workspace by workspace, unless the user chose one (``MLFLOW_WORKSPACE``).
    """

    def __init__(self, client: RestClient, *, threads: int) -> None:
        self.client = client
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="mlflow-bundle-entities")
        self.features = Features(client, self.map)
        self._homes: dict[str, Workspaced] = {}
        self._forbidden: dict[str, Problem] = {}

    def close(self) -> None:
        """Stop the threads. Requests under way are finished first."""
        self._executor.shutdown(cancel_futures=True)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """The results in the order of the items, several requests at a time."""
        return bounded_map(self._executor, function, items, 2 * self._threads)

    @cached_property
    def workspaces(self) -> tuple[Workspaced, ...]:
        """The workspaces to read, each with its client. Where they are not enabled, everything is in the default one."""
        if not self.features.info.workspaces_enabled:
            return (Workspaced(None if self.features.info.workspaces_enabled is None else _DEFAULT, self.client),)
        if chosen := os.environ.get("MLFLOW_WORKSPACE", "").strip():
            return (Workspaced(chosen, self.client.in_workspace(chosen)),)
        answer: _Workspaces = self.client.get_json(f"{API3}workspaces", answer=_Workspaces)
        names = sorted(workspace.name for workspace in answer.workspaces)
        return tuple(Workspaced(name, self.client.in_workspace(name)) for name in names)

    def experiments(self) -> Iterator[Experiment]:
        """Every experiment of every workspace, active and deleted, asked for anew."""
        for workspace in self.workspaces:
            for experiment in experiments(workspace.client):
                self._homes[experiment.experiment_id] = workspace
                yield experiment

    def home(self, experiment_id: str) -> Workspaced:
        """The workspace that an experiment is in; the first where no workspace shows it."""
        if len(self.workspaces) > 1 and experiment_id not in self._homes:
            self._homes[experiment_id] = self.workspaces[0]
            for _ in self.experiments():
                pass
        return self._homes.get(experiment_id, self.workspaces[0])

    def by_home(self, experiment_ids: Iterable[str]) -> list[tuple[Workspaced, list[str]]]:
        """The experiments of each workspace, which can be asked about in one request."""
        groups: dict[str | None, tuple[Workspaced, list[str]]] = {}
        for experiment_id in experiment_ids:
            home = self.home(experiment_id)
            groups.setdefault(home.name, (home, []))[1].append(experiment_id)
        return list(groups.values())

    def workspace(self, name: str | UnsetType) -> Workspaced:
        """The workspace of this name; the first where there is none."""
        return next((workspace for workspace in self.workspaces if workspace.name == name), self.workspaces[0])

    def notes(self) -> list[str]:
        """What of the server was not read, or may be hidden, and is no error."""
        said = [*self.features.notes(), *dict.fromkeys(self.client.doubts)]
        chosen = self.workspaces[0].name
        if self.features.info.workspaces_enabled and os.environ.get("MLFLOW_WORKSPACE", "").strip() == chosen:
            said.append(f"only the workspace {chosen!r} of the server was read (MLFLOW_WORKSPACE)")
        return said

    @property
    def forbidden(self) -> list[Problem]:
        """The kinds that the server has and that this user may not read, or not wholly."""
        return list(self._forbidden.values())

    def forbid(self, kind: str, error: AuthError) -> None:
        """Note that this user may not read a kind.

        Raises:
            AuthError: the server does not know the user at all.
        """
        if error.status != _NOT_PERMITTED:
            raise error
        message = f"not every {kind} can be read: {error.message}"
        self._forbidden.setdefault(kind, Problem(code="not-permitted", kind=kind, message=message))
