"""Both variants of the protocol, as the machine that decides what to say."""

from __future__ import annotations

from types import MappingProxyType

import pytest
from envoy_data_plane.google.protobuf import Any
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from shoal.operator.xds.conversation import Conversation, Request, Update
from shoal.operator.xds.snapshot import Kind, Resource, Snapshot

CDS, EDS, LDS, RDS = Kind
NAMES = ("a", "b", "c")


def snapshot(**versions: dict[str, str]) -> Snapshot:
    """By the kind's short name: names and versions."""
    kinds = {"cds": CDS, "eds": EDS, "lds": LDS, "rds": RDS}
    return Snapshot(
        MappingProxyType(
            {
                kinds[kind]: {
                    name: Resource(name, version, Any(value=version.encode())) for name, version in of.items()
                }
                for kind, of in versions.items()
            }
        )
    )


def simple(cluster: str = "1", endpoints: str = "1", listener: str = "1", routes: str = "1") -> Snapshot:
    return snapshot(cds={"a": cluster}, eds={"a": endpoints}, lds={"l": listener}, rds={"r": routes})


class Envoy:
    """Behaves as Envoy does: applies in order, asks for what it is referred to, answers every update."""

    def __init__(self, *, by_changes: bool) -> None:
        self.by_changes = by_changes
        self.conversation = Conversation(by_changes=by_changes)
        self.has: dict[Kind, dict[str, str]] = {kind: {} for kind in Kind}
        self.names: dict[Kind, list[str]] = {}
        self.heard: list[Update] = []
        self.refused: set[tuple[Kind, str]] = set()
        """(kind, version of a resource) that it rejects."""
        self.unanswered: list[Update] = []

    def connect(self) -> None:
        self._receive(self.conversation.hear(Request(CDS)))
        self._receive(self.conversation.hear(Request(LDS)))

    def tell(self, snapshot: Snapshot) -> None:
        self._receive(self.conversation.tell(snapshot))

    def answer_all(self) -> None:
        while self.unanswered:
            self.answer()

    def answer(self) -> None:
        update = self.unanswered.pop(0)
        kind = update.kind
        error = next((f"{each.name} is bad" for each in update.resources if (kind, each.version) in self.refused), None)
        if error is None:
            self._apply(update)
        names = () if self.by_changes else self.names.get(kind, ())
        self._receive(self.conversation.hear(Request(kind, update.nonce, error, names)))
        if error is None and kind in (CDS, LDS):
            self._subscribe(EDS if kind is CDS else RDS, sorted(self.has[CDS]) if kind is CDS else ["r"])

    def _apply(self, update: Update) -> None:
        if not self.by_changes and update.kind.is_listed:
            self.has[update.kind].clear()
        for name in update.removed:
            self.has[update.kind].pop(name, None)
        for resource in update.resources:
            self.has[update.kind][resource.name] = resource.version

    def _subscribe(self, kind: Kind, names: list[str]) -> None:
        old = self.names.get(kind)
        if old == names:
            return
        self.names[kind] = names
        for name in set(old or ()) - set(names):
            self.has[kind].pop(name, None)
        if self.by_changes:
            request = Request(
                kind, subscribe=set(names) - set(old or ()), unsubscribe=tuple(set(old or ()) - set(names))
            )
        else:
            last = next((update.nonce for update in reversed(self.heard) if update.kind is kind), "")
            request = Request(kind, last, subscribe=names)
        self._receive(self.conversation.hear(request))

    def _receive(self, updates: list[Update]) -> None:
        self.heard += updates
        self.unanswered += updates


@pytest.fixture(params=[False, True], ids=["state", "changes"])
def envoy(request: pytest.FixtureRequest) -> Envoy:
    return Envoy(by_changes=request.param)


def kinds(updates: list[Update]) -> list[Kind]:
    return [update.kind for update in updates]


def test_what_is_referred_to_comes_first(envoy: Envoy) -> None:
    envoy.connect()
    assert envoy.heard == [], "nobody has said what it is to do"
    envoy.tell(simple())
    assert kinds(envoy.heard) == [CDS]
    envoy.answer_all()
    assert kinds(envoy.heard) == [CDS, EDS, LDS, RDS]
    assert envoy.has == {CDS: {"a": "1"}, EDS: {"a": "1"}, LDS: {"l": "1"}, RDS: {"r": "1"}}


def test_equal_snapshots_say_nothing(envoy: Envoy) -> None:
    envoy.connect()
    envoy.tell(simple())
    envoy.answer_all()
    before = len(envoy.heard)
    envoy.tell(simple())
    assert len(envoy.heard) == before


def test_only_what_changed_is_said(envoy: Envoy) -> None:
    envoy.connect()
    envoy.tell(simple())
    envoy.answer_all()
    envoy.heard.clear()
    envoy.tell(simple(endpoints="2"))
    envoy.answer_all()
    assert kinds(envoy.heard) == [EDS]


def test_a_changed_cluster_or_listener_gets_what_it_refers_to_again(envoy: Envoy) -> None:
    envoy.connect()
    envoy.tell(simple())
    envoy.answer_all()
    envoy.heard.clear()
    envoy.tell(simple(cluster="2"))
    envoy.answer_all()
    assert kinds(envoy.heard) == [CDS, EDS]
    envoy.heard.clear()
    envoy.tell(simple(cluster="2", listener="2"))
    envoy.answer_all()
    assert kinds(envoy.heard) == [LDS, RDS]


def test_routes_wait_for_a_new_cluster_and_an_old_one_for_the_routes(envoy: Envoy) -> None:
    envoy.connect()
    envoy.tell(snapshot(cds={"a": "1"}, eds={"a": "1"}, lds={"l": "1"}, rds={"r": "to a"}))
    envoy.answer_all()
    envoy.heard.clear()
    envoy.tell(snapshot(cds={"b": "1"}, eds={"b": "1"}, lds={"l": "1"}, rds={"r": "to b"}))
    seen = []
    while envoy.unanswered:
        seen.append((envoy.unanswered[0].kind, set(envoy.has[CDS]), envoy.has[RDS]["r"]))
        envoy.answer()
    assert [state for kind, *state in seen if kind is RDS] == [[{"a", "b"}, "to a"]]
    assert envoy.has[CDS] == {"b": "1"}
    assert envoy.has[EDS] == {"b": "1"}
    assert envoy.has[RDS] == {"r": "to b"}


def test_what_is_rejected_is_not_repeated_and_holds_back_what_needs_it(envoy: Envoy) -> None:
    envoy.connect()
    envoy.tell(simple())
    envoy.answer_all()
    envoy.heard.clear()
    envoy.refused = {(CDS, "bad")}
    envoy.tell(simple(cluster="bad", routes="2"))
    envoy.answer_all()
    assert kinds(envoy.heard) == [CDS, EDS]
    assert envoy.has[RDS] == {"r": "1"}
    envoy.tell(simple(cluster="bad", routes="3"))
    envoy.answer_all()
    assert kinds(envoy.heard) == [CDS, EDS]
    envoy.tell(simple(cluster="good", routes="3"))
    envoy.answer_all()
    assert envoy.has == {CDS: {"a": "good"}, EDS: {"a": "1"}, LDS: {"l": "1"}, RDS: {"r": "3"}}


def test_answers_to_what_was_overtaken_are_ignored(envoy: Envoy) -> None:
    envoy.connect()
    envoy.tell(simple())
    envoy.answer_all()
    envoy.heard.clear()
    envoy.tell(simple(endpoints="2"))
    first = envoy.heard[-1]
    envoy.tell(simple(endpoints="3"))
    assert not envoy.conversation.is_current(Request(EDS, first.nonce))
    names = () if envoy.by_changes else ["a"]
    assert envoy.conversation.hear(Request(EDS, first.nonce, "bad", names)) == []
    envoy.answer_all()
    assert envoy.has[EDS] == {"a": "3"}


def test_an_envoy_that_comes_back_is_not_told_what_it_knows() -> None:
    conversation = Conversation(by_changes=True)
    conversation.tell(simple(cluster="2"))
    (update,) = conversation.hear(Request(CDS, versions={"a": "2"}))
    assert (update.resources, update.removed) == ((), ())
    updates = conversation.hear(Request(EDS, subscribe=["a"], versions={"a": "0"}))
    assert [each.version for each in updates[0].resources] == ["1"]


def test_asking_for_what_is_not_there_is_answered() -> None:
    conversation = Conversation(by_changes=True)
    conversation.tell(simple())
    conversation.hear(Request(CDS))
    (update,) = conversation.hear(Request(EDS, subscribe=["a", "nobody"]))
    assert [resource.name for resource in update.resources] == ["a"]
    assert update.removed == ("nobody",)


versions = st.sampled_from("123")
snapshots = st.sets(st.sampled_from(NAMES), min_size=1).flatmap(
    lambda names: st.tuples(
        st.fixed_dictionaries(dict.fromkeys(names, versions)),
        st.fixed_dictionaries(dict.fromkeys(names, versions)),
        versions,
        versions,
    )
)


class Talk(RuleBasedStateMachine):
    """Snapshots come while answers are under way: in the end an Envoy has the last one, in whichever order."""

    by_changes = False

    @initialize()
    def connect(self) -> None:
        self.envoy = Envoy(by_changes=self.by_changes)
        self.last: Snapshot | None = None
        self.envoy.connect()

    @rule(parts=snapshots)
    def publish(self, parts: tuple[dict[str, str], dict[str, str], str, str]) -> None:
        clusters, endpoints, listener, routes = parts
        # A route's version says to which clusters it leads.
        leads_to = "".join(sorted(clusters))
        self.last = snapshot(cds=clusters, eds=endpoints, lds={"l": listener}, rds={"r": f"{leads_to}/{routes}"})
        self.envoy.tell(self.last)

    @rule()
    def answer(self) -> None:
        if self.envoy.unanswered:
            self.envoy.answer()

    @rule()
    def settle(self) -> None:
        self.envoy.answer_all()
        if self.last is not None:
            wanted = {kind: {name: each.version for name, each in self.last.of(kind).items()} for kind in Kind}
            assert self.envoy.has == wanted

    @invariant()
    def routes_lead_to_clusters_that_are_there(self) -> None:
        leads_to, _, _ = self.envoy.has[RDS].get("r", "/").partition("/")
        assert set(leads_to) <= self.envoy.has[CDS].keys()
        assert set(leads_to) <= self.envoy.has[EDS].keys()


class TalkByChanges(Talk):
    """The other variant."""

    by_changes = True


TestTalk = Talk.TestCase
TestTalkByChanges = TalkByChanges.TestCase
for machine in (TestTalk, TestTalkByChanges):
    machine.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@given(st.lists(st.builds(Request, st.sampled_from(list(Kind)), st.sampled_from(["", "1", "7"])), max_size=8))
def test_nothing_an_envoy_says_breaks_it(requests: list[Request]) -> None:
    for by_changes in (False, True):
        conversation = Conversation(by_changes=by_changes)
        conversation.tell(simple())
        for request in requests:
            conversation.hear(request)
