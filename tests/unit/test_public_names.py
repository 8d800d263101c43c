"""The public face of the package is what it says it is: a name appears or goes by intent only."""

import inspect
from enum import Enum
from typing import get_args, get_type_hints

import qos2
from qos2 import errors, model

#: Errors that a client cannot meet: the daemon's own start and the loader's.
DAEMONS_OWN = {"AbiMismatch", "AlreadyRunning", "DeviceGone", "MissingKernelFeature"}

HANDLE = {
    "add_program",
    "add_socket",
    "begin",
    "close",
    "closed",
    "enumerate",
    "explain",
    "flow_details",
    "flows",
    "policy",
    "policy_decision",
    "reload",
    "start_tracking",
    "status",
    "stop_tracking",
}
FLOW = {
    "add_socket",
    "begin_fundamentals",
    "begin_notify",
    "close",
    "fundamentals",
    "id",
    "notify",
    "priority",
    "rate",
    "remove_socket",
    "report",
    "set_dscp",
    "set_rate",
    "set_traffic_type",
    "stats",
}
OPERATION = {"add_done_callback", "cancel", "done", "result"}


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_what_is_exported_is_what_is_there() -> None:
    submodules = {name for name in public(qos2) if inspect.ismodule(getattr(qos2, name))}
    assert sorted(qos2.__all__) == sorted(public(qos2) - submodules)
    assert qos2.__all__ == sorted(qos2.__all__)


def test_every_error_that_a_client_can_meet_is_exported() -> None:
    every = {kind.__name__ for kind in errors.BY_CODE.values()}
    assert every >= DAEMONS_OWN
    assert every - DAEMONS_OWN == {name for name in every if hasattr(qos2, name)}


def test_the_enumerations_of_the_model_that_arguments_take_are_exported() -> None:
    for name in ("TrafficType", "Shaping", "RateReason", "Condition"):
        assert getattr(qos2, name) is getattr(model, name)


def named_in(annotation: object) -> set[type]:
    """The classes of this package in a type, those of their fields among them."""
    found: set[type] = set()
    if inspect.isclass(annotation) and annotation.__module__.startswith("qos2."):
        found = {annotation}
        for each in get_type_hints(annotation).values() if not issubclass(annotation, Enum) else ():
            found |= named_in(each)
    return found.union(*map(named_in, get_args(annotation)))


def test_every_type_of_a_result_is_exported() -> None:
    methods = [
        getattr(kind, name) for kind in (qos2.Handle, qos2.Flow) for name in HANDLE | FLOW if hasattr(kind, name)
    ]
    hints = [get_type_hints(each)["return"] for each in methods if inspect.isfunction(each)]
    found = {kind.__name__ for kind in set().union(*map(named_in, hints))}
    assert found >= {"Explanation", "FlowDetails", "FlowFundamentals", "StateChange", "Statement"}
    # What replies of the protocol have in common is nothing to make one of.
    assert found - {"Result"} - set(qos2.__all__) == set()


def test_the_methods_of_a_handle_are_these() -> None:
    assert public(qos2.Handle) == HANDLE


def test_the_methods_of_a_flow_are_these() -> None:
    assert public(qos2.Flow) == FLOW


def test_the_methods_of_an_operation_are_these() -> None:
    assert public(qos2.Operation) == OPERATION


def test_every_public_thing_says_what_it_is() -> None:
    documented = [getattr(qos2, name) for name in qos2.__all__ if inspect.isclass(getattr(qos2, name))]
    documented += [getattr(qos2.Handle, name) for name in HANDLE] + [getattr(qos2.Flow, name) for name in FLOW - {"id"}]
    documented += [getattr(qos2.Operation, name) for name in OPERATION]
    assert [thing for thing in documented if not inspect.getdoc(thing)] == []
