"""Builds a target of a Dockerfile as a folder, without a container engine: its steps, in chroots.

It knows the instructions that our Dockerfile uses and refuses others. Commands run in namespaces of
their own, so that they leave neither mounts nor processes behind. Needs root.
"""

import os
import re
import shlex
import shutil
import string
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class Stage:
    """A stage as it is written: what it stands on, and its instructions in order."""

    name: str
    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)


@dataclass
class Image:
    """A stage that was built: its files, and what its processes begin with."""

    root: Path
    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    folder: str = "/"
    user: str = "0"

    def command(self, script: str, user: str, network: bool, mounts: dict[str, str]) -> list[str]:
        """The command line that runs ``script`` in the image's bash; ``mounts``: where: what."""
        root = str(self.root)
        setup = ["set -e", f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        setup += [f"mount -t tmpfs -o mode=1777 shm {root}/dev/shm"]
        setup += [shlex.join(["mount", "--bind", m, root + at]) for at, m in mounts.items()]
        if not network:
            setup += ["ip link set lo up"]
        inside = shlex.join(["/bin/bash", "-c", f"cd {self.folder} && {script}"])
        variables = shlex.join(f"{name}={value}" for name, value in self.environment.items())
        setup += [f"exec env -i {variables} chroot --userspec={user} {root} {inside}"]
        apart = ["--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
        return ["unshare", *apart, "bash", "-c", "\n".join(setup)]

    def run(self, script: str, user: str = "", timeout: float = 900) -> str:
        """What ``script`` prints in the image, cut off from every network."""
        command = self.command(script, user or f"{self.user}:{self.user}", False, {})
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        assert done.returncode == 0, f"{script}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        return done.stdout


def parse(dockerfile: Path) -> tuple[dict[str, str], list[Stage]]:
    """The arguments before the first stage, and the stages."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _, rest = line.partition(" ")
        if word == "FROM":
            parent, _, name = rest.split()
            stages.append(Stage(name, parent))
        elif word and stages:
            stages[-1].instructions.append((word, rest))
        elif word == "ARG":
            name, _, value = rest.partition("=")
            arguments[name] = value
    return arguments, stages


def admitted(ignore: Path, path: str) -> bool:
    """Whether .dockerignore lets a file of the repository into the build."""

    def meets(pattern: str) -> bool:
        parts = re.split(r"(\*\*/|\*)", pattern)
        meant = {"**/": "(.*/)?", "*": "[^/]*"}
        expression = "".join(meant.get(part, re.escape(part)) for part in parts)
        return re.fullmatch(f"{expression}(/.*)?", path) is not None

    verdict = True
    for line in ignore.read_text().split("\n"):
        if line and not line.startswith("#") and meets(line.removeprefix("!")):
            verdict = line.startswith("!")
    return verdict


class Build:
    """One build of one Dockerfile in the folder ``workspace``.

    base: a root file system, in place of the image that the stages begin with. arguments: as
    --build-arg. settings: variables for the network of the steps that are no part of the image.
    """

    def __init__(
        self,
        context: Path,
        dockerfile: Path,
        workspace: Path,
        base: Path,
        arguments: dict[str, str],
        settings: dict[str, str],
    ) -> None:
        self._context, self._workspace, self._base = context, workspace, base
        self._arguments, self._settings = arguments, settings
        self._stages = {stage.name: stage for stage in parse(dockerfile)[1]}
        self._built: dict[str, Image] = {}

    def target(self, name: str) -> Image:
        """The stage of this name, built if it was not yet."""
        if name not in self._built:
            self._built[name] = self._build(self._stages[name])
        return self._built[name]

    def _build(self, stage: Stage) -> Image:
        parent = self.target(stage.parent) if stage.parent in self._stages else Image(self._base)
        image = Image(
            self._workspace / stage.name, dict(parent.environment), parent.folder, parent.user
        )
        subprocess.run(["cp", "--archive", str(parent.root), str(image.root)], check=True)
        arguments: dict[str, str] = {}
        for word, rest in stage.instructions:
            if word == "ARG":
                name, given, default = rest.partition("=")
                if given or name in self._arguments:
                    arguments[name] = self._arguments.get(name, default)
            elif word == "ENV":
                image.environment |= dict(_assignments(rest, image.environment))
            elif word == "RUN":
                self._step(image, rest, arguments)
            elif word == "COPY":
                self._copy(image, rest.split())
            elif word == "WORKDIR":
                image.folder = rest
                (image.root / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif word == "USER":
                image.user = rest
            elif word not in ("LABEL", "CMD"):
                raise NotImplementedError(word)
        return image

    def _step(self, image: Image, script: str, arguments: dict[str, str]) -> None:
        mounts = {"/etc/resolv.conf": "/etc/resolv.conf"}
        settings = dict(self._settings)
        for name, value in settings.items():
            if value.startswith("/"):
                settings[name] = f"/mnt/{name}"
                mounts[settings[name]] = value
        for place, origin in mounts.items():
            inside = image.root / place[1:]
            inside.mkdir(exist_ok=True) if Path(origin).is_dir() else inside.touch()
        variables = image.environment | arguments | settings
        environment = Image(image.root, variables, image.folder)
        command = environment.command(script, f"{image.user}:{image.user}", True, mounts)
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, f"RUN {script}: {done.stdout[-4000:]}\n{done.stderr[-4000:]}"
        for place, origin in mounts.items():
            inside = image.root / place[1:]
            inside.rmdir() if Path(origin).is_dir() else inside.unlink()

    def _copy(self, image: Image, words: list[str]) -> None:
        *sources, target = words
        # As Docker reads it: into the folder when it is one; a folder's content, not the folder.
        goal = image.root / (Path(image.folder) / target).as_posix().lstrip("/")
        if sources[0].startswith("--from="):
            (source,) = sources[1:]
            origin = self.target(sources[0].removeprefix("--from=")).root / source.lstrip("/")
            shutil.copytree(origin, goal, symlinks=True)
            return
        for source in sources:
            for file in self._files(source):
                inside = Path(file).relative_to(source)
                to = goal / (
                    inside if inside.name else Path(source).name if target[-1] in "/." else ""
                )
                to.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._context / file, to)

    def _files(self, source: str) -> Iterator[str]:
        listed = subprocess.run(
            ["git", "ls-files", "--", source],
            cwd=self._context,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        found = [file for file in listed if admitted(self._context / ".dockerignore", file)]
        assert found, f"COPY {source}: no file that git tracks and .dockerignore admits"
        yield from found


def _assignments(text: str, environment: dict[str, str]) -> Iterator[tuple[str, str]]:
    for word in shlex.split(text):
        name, _, value = word.partition("=")
        yield name, string.Template(value).substitute(environment)


def size(root: Path) -> int:
    """Bytes on disk below ``root``."""
    said = subprocess.run(
        ["du", "--bytes", "--summarize", str(root)], capture_output=True, text=True
    )
    return int(said.stdout.split()[0])


def settings_of(environment: "os._Environ[str]") -> dict[str, str]:
    """pip's settings of this machine, which hold for the steps too."""
    return {name: value for name, value in environment.items() if name.startswith("PIP_")}
