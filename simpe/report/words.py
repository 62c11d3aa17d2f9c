"""What each figure of an evaluation means, in a line."""

MEANINGS = {
    "rows": "synthetic samples compared",
    "reference_rows": "rows of the reference compared",
    "compared_rows": "samples and reference rows in the nearest-neighbour figures",
    "feature_space": "where distances are taken",
    "frechet_distance": "distance between the two clouds, as Gaussians; 0 is alike",
    "nearest_reference_distance": "mean distance from a sample to the nearest reference row; small: realistic",
    "nearest_sample_distance": "mean distance from a reference row to the nearest sample; small: covered",
    "label_total_variation": "difference of the class frequencies; 0 is alike, 1 has nothing in common",
    "accuracy": "share of real rows that a classifier trained on the samples gets right",
    "macro_f1": "the same, every class counting alike (F1)",
    "majority": "share of the most frequent class: what always naming it would get right",
    "nearest_neighbour_accuracy": "share of real rows whose nearest sample has their class",
    "protocol": "the classifier",
    "emd": "mean distance of durations, packets and bytes; 0 is alike",
    "tvd2": "mean difference of all pairs of columns; 0 is alike, 1 has nothing in common",
}

PREFIXES = {
    "emd_": "how far values must be moved on a public scale from 0 to 1; 0 is alike",
    "jsd_": "difference of the frequencies (Jensen-Shannon); 0 is alike, 1 has nothing in common",
    "top_": "difference of the ten heaviest; 0 is alike",
    "real_": "the same classifier, trained on real rows",
}


def meaning(name: str) -> str:
    """What the figure of this name means, or nothing where that is not known."""
    return MEANINGS.get(name) or next((said for prefix, said in PREFIXES.items() if name.startswith(prefix)), "")
