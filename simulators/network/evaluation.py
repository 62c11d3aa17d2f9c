"""How like real traffic a flow table is, and how useful: figures of two flow tables, real ones held out.

Nothing here is differentially private: where the reference is private, so are the figures.

A table has columns of ``schema``; of those that either table lacks, no figure is given. Two more columns count where
both tables have them: ``label`` (a class, such as the device) and ``application`` (a name as nDPI, Zeek or a release
gives it, see :func:`profiles.application`; a capture has none, so its figures lack what needs one).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import rel_entr
from scipy.stats import wasserstein_distance

from simpe.metrics import tables
from simpe.metrics.classify import discriminator_auc, train_and_test
from simpe.simulators.network.profiles import ICMP, ICMPV6, IGMP, SERVICES, TCP, UDP, application

Table = Mapping[str, NDArray[Any]]
Progress = Callable[[str, int, int], None]

TOP = 10
"""How many are heavy hitters."""
FREQUENT = 8
"""How many classes of the test rows the smaller task has."""

AMOUNTS: Mapping[str, tuple[float, tuple[float, ...]]] = {
    "duration": (3.6e6, (1, 3, 10, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5, 3e5, 1e6)),  # ms, cap 1 h
    "packets": (1e4, (1, 2, 3, 4, 6, 8, 12, 16, 32, 64, 128, 512, 2048)),
    "bytes": (1e8, (1, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32_768, 131_072, 1_048_576)),
}
"""Amount -> its cap, which is the embedding's, and the edges between its 14 public bins."""

PORT_CLASSES = ("other well-known", "registered", "ephemeral", "none")
"""Classes of server ports that are no service's, behind SERVICES."""

_PROTOCOLS = (TCP, UDP, ICMP, ICMPV6, IGMP)


def compare(flows: Table, reference: Table) -> dict[str, float]:
    """Distances between two flow tables (any numbers of rows, at least one each); 0 is alike.

    - ``jsd_*``: squared Jensen-Shannon distance with logarithms to base 2, in [0, 1], of protocol, server port,
      ``service`` (:func:`services`), client port by the same classes, TCP outcome, label and application; of
      ``clients`` and ``servers``, addresses are ranked by their flows and the shares of the ranks compared, as NetShare
      does (Yin et al., SIGCOMM 2022, section 6).
    - ``emd_*``: 1-Wasserstein distance of duration, packets and bytes (each way and both) on the scale
      log1p(x) / log1p(cap) with the caps of AMOUNTS, in [0, 1]; ``emd`` is their mean. (NetShare and NetDPSyn rescale
      by the best and worst of the methods compared, so a figure depends on its neighbours; not so here.)
    - ``tvd1``, ``tvd2``, ``tvd3``: mean total variation distance, in [0, 1], of all one-, two- and three-way marginals
      of the columns in :func:`bins`; ``chi_*``: chi-square of each of these, as Cramer's V in [0, 1].
    - ``ks_*``: Kolmogorov-Smirnov distance of the amounts, in [0, 1]; ``correlation_difference`` of all pairs of them,
      on the scale of the ``emd_*``; see :mod:`simpe.metrics.tables`.
    - ``top_ports_missed``: one less the Jaccard index of the ten most frequent server ports of TCP and UDP.
    - ``top_clients_bytes``, ``top_servers_bytes``: difference in the share of bytes of the ten heaviest addresses.

    Raises ValueError for a table without rows.
    """
    if not all(len(next(iter(table.values()))) for table in (flows, reference)):
        raise ValueError("both tables need at least one flow")
    both = flows.keys() & reference.keys()
    found: dict[str, float] = {}
    codes = bins(flows), bins(reference)
    for name in codes[0].keys() & codes[1].keys() & {"protocol", "service", "label", "application"}:
        found[f"jsd_{name}"] = _divergence(codes[0][name], codes[1][name])
    if "server_port" in both:
        found["jsd_server_port"] = _divergence(flows["server_port"], reference["server_port"])
        found["top_ports_missed"] = 1 - _overlap(_top_ports(flows), _top_ports(reference))
    if "client_port" in both:
        found["jsd_client_port"] = _divergence(*(services(t["protocol"], t["client_port"]) for t in (flows, reference)))
    if "outcome" in both:
        tcp = [table["outcome"][table["protocol"] == TCP] for table in (flows, reference)]
        found["jsd_outcome"] = _divergence(*tcp) if all(map(len, tcp)) else float(any(map(len, tcp)))
    for side in ("client", "server"):
        if side in both:
            ranked = [_heaviest(table[side]) for table in (flows, reference)]
            found[f"jsd_{side}s"] = _of_shares(*ranked)
            top = [_heaviest(table[side], amount(table, "bytes"))[:TOP].sum() for table in (flows, reference)]
            found[f"top_{side}s_bytes"] = abs(float(top[0] - top[1]))
    names = ("duration", *(f"{kind}{way}" for kind in ("packets", "bytes") for way in ("", "_out", "_in")))
    scaled = [np.stack([_scaled(table, name) for name in names], axis=1) for table in (flows, reference)]
    columns = list(zip(names, scaled[0].T, scaled[1].T, strict=True))
    emd = {f"emd_{name}": float(wasserstein_distance(one, other)) for name, one, other in columns}
    found |= emd | {"emd": float(np.mean(list(emd.values())))}
    found |= {f"ks_{name}": tables.kolmogorov_smirnov(one, other) for name, one, other in columns}
    found |= {f"tvd{k}": tables.marginal_total_variation(*codes, k) for k in (1, 2, 3)}
    found |= {
        f"chi_{name}": tables.chi_square(one, codes[1][name]) for name, one in codes[0].items() if name in codes[1]
    }
    if min(map(len, scaled)) > 1:
        found["correlation_difference"] = tables.correlation_difference(*scaled)
    return dict(sorted(found.items()))


def utility(
    flows: Table,
    test: Table,
    target: str,
    *,
    train: Table | None = None,
    ports: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Train on synthetic flows, test on real ones: what a random forest learns about ``target`` from flows.

    ``target``: "label" or "application" ("other" counts as one of them). The forest (200 trees, see
    :func:`train_and_test`) sees protocol, service, server port, duration, packets, bytes and mean payload of a packet
    each way; without ``ports``, neither service nor server port, which nearly give an application away. ``macro_f1``
    and ``accuracy``, in [0, 1], are over all test rows, each class among them counting the same in the first; with
    ``_top8``, training and test are confined to the 8 most frequent classes of the test rows. ``majority`` is the
    accuracy of always naming the test rows' most frequent class. ``real_*``: of the same forest trained on the real
    flows of ``train``, where they are given.
    """
    truth = _classes(test, target)
    names, counts = np.unique(truth, return_counts=True)
    frequent = names[np.argsort(-counts, kind="stable")[:FREQUENT]]
    found: dict[str, float] = {}
    for prefix, table in (("", flows), ("real_", train)):
        if table is None:
            continue
        ours = _classes(table, target)
        for suffix, classes in (("", None), (f"_top{FREQUENT}", frequent)):
            rows = np.ones(len(ours), bool) if classes is None else np.isin(ours, classes)
            tested = np.ones(len(truth), bool) if classes is None else np.isin(truth, classes)
            x, y = _features(table, ports)[rows], _features(test, ports)[tested]
            scores = train_and_test(x, ours[rows], y, truth[tested], seed, progress) if rows.any() else None
            f1, accuracy = (scores.macro_f1, scores.accuracy) if scores else (0.0, 0.0)
            found |= {f"{prefix}macro_f1{suffix}": f1, f"{prefix}accuracy{suffix}": accuracy}
    return found | {"majority": float(counts.max() / len(truth))}


def told_apart(flows: Table, reference: Table, seed: int = 0) -> float:
    """How well a forest tells synthetic from real flows, by what :func:`utility` shows it: 0.5 not at all, 1 wholly."""
    return discriminator_auc(_features(flows, ports=True), _features(reference, ports=True), seed)


def services(protocol: NDArray[Any], port: NDArray[Any]) -> NDArray[np.int64]:
    """Index (n,) into SERVICES or, behind it, PORT_CLASSES; "none" where the protocol has no ports."""
    table = np.full(65536, len(SERVICES))
    table[1024:] += 1
    table[49152:] += 1
    table[[number for _, number in SERVICES]] = np.arange(len(SERVICES))
    none = len(SERVICES) + PORT_CLASSES.index("none")
    return np.where(np.isin(protocol, (TCP, UDP)), table[port.astype(np.int64)], none)


def applications(names: NDArray[Any]) -> NDArray[np.str_]:
    """The public name (n,) of each name (n,) of an application, see :func:`profiles.application`."""
    values, index = np.unique(names, return_inverse=True)
    return np.array([application(str(value)) for value in values], dtype=np.str_)[index]


def amount(flows: Table, name: str) -> NDArray[np.float64]:
    """``duration`` in ms, or packets or bytes: ``packets_out``, or ``packets`` for both ways; float64 (n,)."""
    if name == "duration":
        return flows["duration"].astype(np.float64) * 1e3
    if name in ("packets", "bytes"):
        return amount(flows, f"{name}_out") + amount(flows, f"{name}_in")
    return flows[name].astype(np.float64)


def bins(flows: Table) -> dict[str, NDArray[Any]]:
    """The columns of two-way marginals, as public bins or names: name -> (n,).

    Protocol (TCP, UDP, ICMP, ICMPv6, IGMP, other), service, duration, packets (both ways), bytes each way; application
    and label where the table has them.
    """
    codes: dict[str, NDArray[Any]] = {
        "protocol": np.where(np.isin(flows["protocol"], _PROTOCOLS), flows["protocol"], 255).astype(np.int64),
        "service": services(flows["protocol"], flows["server_port"]),
    }
    for name in ("duration", "packets", "bytes_out", "bytes_in"):
        codes[name] = np.digitize(amount(flows, name), AMOUNTS[name.partition("_")[0]][1])
    if "application" in flows:
        codes["application"] = applications(flows["application"])
    if "label" in flows:
        codes["label"] = flows["label"].astype(np.str_)
    return codes


def _classes(flows: Table, target: str) -> NDArray[np.str_]:
    return applications(flows[target]) if target == "application" else flows[target].astype(np.str_)


def _features(flows: Table, ports: bool) -> NDArray[np.float64]:
    """What a classifier sees: float64 (n, columns)."""
    columns = [flows["protocol"]]
    columns += [services(flows["protocol"], flows["server_port"]), flows["server_port"]] if ports else []
    columns += [flows[name] for name in ("duration", "packets_out", "packets_in", "bytes_out", "bytes_in")]
    columns += [flows[f"bytes_{way}"] / np.maximum(flows[f"packets_{way}"], 1) for way in ("out", "in")]
    return np.stack([column.astype(np.float64) for column in columns], axis=1)


def _of_shares(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Squared Jensen-Shannon distance of shares, the shorter padded with zeros."""
    padded = np.zeros((2, max(len(p), len(q))))
    padded[0, : len(p)], padded[1, : len(q)] = p, q
    return float(rel_entr(padded, padded.mean(axis=0)).sum() / (2 * math.log(2)))


def _divergence(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Squared Jensen-Shannon distance of the values' shares."""
    a, b, n = tables.shared_codes(x, y)
    return _of_shares(np.bincount(a, minlength=n) / len(a), np.bincount(b, minlength=n) / len(b))


def _heaviest(addresses: NDArray[np.uint8], weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
    """Shares of the addresses (n, 16) in the flows, or in the weights (n,), the largest first."""
    _, index = np.unique(addresses, axis=0, return_inverse=True)
    total = np.sort(np.bincount(index.ravel(), weights))[::-1].astype(np.float64)
    shares: NDArray[np.float64] = total / max(total.sum(), 1)
    return shares


def _top_ports(flows: Table) -> set[int]:
    ports, counts = np.unique(flows["server_port"][np.isin(flows["protocol"], (TCP, UDP))], return_counts=True)
    return set(ports[np.argsort(-counts, kind="stable")[:TOP]].tolist())


def _overlap(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0


def _scaled(flows: Table, name: str) -> NDArray[np.float64]:
    """An amount (n,) on its public scale, in [0, 1]."""
    cap = AMOUNTS[name.partition("_")[0]][0]
    scaled: NDArray[np.float64] = np.log1p(np.clip(amount(flows, name), 0, cap)) / math.log1p(cap)
    return scaled
