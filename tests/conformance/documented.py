"""What Microsoft documents: the errors of each call, by the reference pages and the comments of qos2.h.

With them come codes that programs were seen to handle (782, 783; 1056 of Wine). Every one is the outcome of a row
of the table, or docs/api.md says why it cannot arise here; a test compares.
"""

from conformance.calls import Call
from conformance.table import Row

#: What the pages list for nearly every call.
GENERIC = frozenset({8, 57, 1117, 1164, 1232, 1450})

DOCUMENTED: dict[str, frozenset[int]] = {
    "QOSCreateHandle": frozenset({8, 31, 87, 1056, 1068, 1450, 4309}),
    "QOSCloseHandle": frozenset({87}),
    "QOSStartTrackingClient": GENERIC | {6, 50, 67, 87},
    "QOSStopTrackingClient": GENERIC | {6, 87},
    "QOSEnumerateFlows": frozenset({5, 6, 8, 87, 122, 1117, 1164, 1450}),
    "QOSAddSocketToFlow": GENERIC | {6, 50, 67, 87, 782, 783, 1168, 1225},
    "QOSRemoveSocketFromFlow": GENERIC | {6, 995, 1168},
    "QOSSetFlow": GENERIC | {5, 6, 50, 54, 59, 87, 170, 997, 1168, 1237, 1260},
    "QOSQueryFlow": GENERIC | {6, 50, 87, 122, 170, 232, 997, 1168, 1237, 1260, 1460},
    "QOSNotifyFlow": GENERIC | {6, 50, 59, 87, 122, 183, 995, 997, 1168, 1260},
    "QOSCancel": GENERIC | {6, 87, 995},
}


def outcome_of(row: Row) -> tuple[str, int]:
    """The call whose outcome a row is, and its error: that of an overlapped call is told by GetOverlappedResult."""
    if row.call.function != "GetOverlappedResult":
        return row.call.function, row.expect.error
    name = row.call.arguments["Overlapped"]
    begun = [step for step in row.given if isinstance(step, Call) and step.arguments.get("Overlapped") == name]
    return next(each.function for each in begun if each.function != "QOSCancel"), row.expect.error
