"""Public comparisons of answers, by name: which files they are, and where those lie.

Preferences are read out of them (`alignment.preferences`), the dialogues with the preferred answers, and prompts.
"""

from __future__ import annotations

import os
from pathlib import Path

from minillama import catalog
from minillama.catalog import RemoteFile
from minillama.errors import MinillamaError

# The revision of May 2023, the newest there is.
_HH = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/09be8c5bbc57cb3887f3a9732ad6aa7ec602a1fa"
# name -> its files, each with the split and the domain of its pairs; split None: decided for each by its hash
PUBLIC_SETS: dict[str, list[tuple[RemoteFile, str | None, str]]] = {
    "hh-rlhf": [  # Bai et al., arXiv:2204.05862: its helpful-base, 43,835 and 2,354 pairs, 17 MB
        (
            RemoteFile(
                f"{_HH}/helpful-base/train.jsonl.gz",
                "518a5bf288456fc9f3b7c980c54116fba0c52f274d3f4d344675d83e4058f6f4",
                part="hh_helpful_base_train.jsonl.gz",
            ),
            "train",
            "helpfulness",
        ),
        (
            RemoteFile(
                f"{_HH}/helpful-base/test.jsonl.gz",
                "8be3fc1a13b27901631696f2be6f184c799f1baeaf145f53ac5db24960adc37b",
                part="hh_helpful_base_test.jsonl.gz",
            ),
            "validation",
            "helpfulness",
        ),
    ],
    "hh-rlhf-sample": [  # 1,312 pairs of its harmless-base; no file of its own to download
        (
            RemoteFile(
                "",
                "afa23b66113b2f8de63cf788c66eae3b12291ffa3d8b6a60dbcf5ed29de6f56e",
                part="hh_harmless_base_sample.jsonl.gz",
            ),
            None,
            "safety",
        )
    ],
}


def located(name: str, file: RemoteFile) -> Path:
    """Where a file of the set `name` lies, downloaded if need be. Raises MinillamaError where it cannot be had."""
    data = os.environ.get("MINILLAMA_DATA")
    for folder in [Path(data), Path(data) / "text"] if data else []:
        if (folder / file.name).is_file():
            catalog.check_sha256(folder / file.name, file)
            return folder / file.name
    if not file.url:
        raise MinillamaError(
            f"{name}: expected {file.name} in the folder that MINILLAMA_DATA names; the whole set is at "
            f"{_HH}/harmless-base/train.jsonl.gz, to be given as a file"
        )
    folder = catalog.cache_folder()
    if problem := catalog.fetch(file, folder):
        raise MinillamaError(f"{name}: {problem}; get {file.url} and put it into {folder} as {file.name}")
    return folder / file.name
