"""Every setting: its name, default, meaning, and what it may be. Defaults < environment and secret files < flags.

`load` reads them all at once and reports every problem, one line each, in the words of the user: the name as he wrote
it, his value, and what would be right. Secrets never appear in a message or a repr. The rest of the program receives
the values it uses, never this object; whether a root exists is not decided here, since one may be mounted later.
"""

import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import quote

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    JsonValue,
    PlainValidator,
    PrivateAttr,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from trackwatch import folder, values
from trackwatch.errors import ConfigError
from trackwatch.event import MetadataForm
from trackwatch.patterns import AUDIO, DEFAULT_EXCLUDE, Patterns
from trackwatch.values import AmqpTarget, JsonLinesTarget, Unroutable

PREFIX = "TRACKWATCH_"
DEPRECATED_ROOT = "FILE_WATCHER_SCAN_PATH"

# What the state folder holds; see store.py. If a pattern made us watch these, every event would cause the next one.
_STATE_FILES = (b"trackwatch.db", b"trackwatch.db-wal", b"trackwatch.db-shm", b"lock")

# More cores than any machine has.
_UNLIMITED = 1 << 16

# In place of roots that are wrong: a place where nothing can be.
_NO_ROOTS = ("/dev/null/no-root",)

# Longer values say no more in a message.
_SHOWN_CHARS = 120

# Kubernetes describes a service called trackwatch to every pod with variables of these forms.
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT)|_PORT(_[0-9]+_(TCP|UDP)(_\w+)?)?$")


def usable_cores() -> int:
    """Return how many cores this process may use: those it may run on, and no more than its container is granted."""
    return min(len(os.sched_getaffinity(0)), granted_cores())


def granted_cores(proc: Path = Path("/proc/self/cgroup"), tree: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how many cores' time the process's control group and those above it have (`cpu.max` of cgroup v2).

    A container with a limit of two cores still may run on all 64 of its host.
    """
    try:
        ours = next(line[len("0::") :] for line in proc.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return _UNLIMITED
    group = tree / ours.lstrip("/")
    granted = _UNLIMITED
    for at in (group, *group.parents[: len(group.parts) - len(tree.parts)]):
        try:
            quota, period = (at / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue  # the topmost has none, nor has a group without the controller
        if quota.isdigit() and period.isdigit() and int(period):
            granted = min(granted, max(1, math.ceil(int(quota) / int(period))))
    return granted


def _setting(
    names: str | tuple[str, ...],
    default: Any,
    meaning: str,
    *,
    shown: str | None = None,
    flag: str | None = None,
) -> Any:
    """Describe a field: its variables, default (a callable makes one) and how to show that, meaning, and flag."""
    extra: dict[str, JsonValue] = {"shown": str(default) if shown is None else shown}
    if flag:
        extra["flag"] = flag
    return Field(
        **({"default_factory": default} if callable(default) else {"default": default}),
        # What depends on other settings is checked for defaults too.
        validate_default=default is not None and default is not ...,
        validation_alias=AliasChoices(*([names] if isinstance(names, str) else names)),
        description=meaning,
        json_schema_extra=extra,
    )


_HOW_PATTERNS = "gitignore-style patterns, one a line or separated by commas (`\\,` for a comma in a name)"


class Settings(BaseSettings):
    """All settings, validated whole. `load` makes it."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        case_sensitive=True,
        # Compose files and Helm charts pass what nobody has set as an empty string.
        env_ignore_empty=True,
        # Whatever fails, pydantic's own message must not print a password.
        hide_input_in_errors=True,
    )

    # Fields are validated in this order; a check that compares two stands with the later one.
    roots: Annotated[tuple[bytes, ...], NoDecode, PlainValidator(values.roots)] = _setting(
        ("DATA_DIR", DEPRECATED_ROOT),
        ...,
        "The directories to watch: one, or several separated by `:`.",
        shown="`/data/music` in the image, else required",
        flag="ROOT",
    )
    instance_id: Annotated[str | None, BeforeValidator(values.instance_id)] = _setting(
        "INSTANCE_ID", None, "The name of this instance in every message.", shown="made once, kept in the state"
    )
    max_concurrent_files: Annotated[int, values.whole(1, 1000)] = _setting(
        "MAX_CONCURRENT_FILES", 100, "How many files are in flight at once."
    )
    rabbitmq_host: Annotated[str | None, BeforeValidator(values.host)] = _setting(
        "RABBITMQ_HOST",
        None,
        "The broker's host. Setting this or one of the next six means: publish to RabbitMQ.",
        shown="localhost",
    )
    rabbitmq_port: Annotated[int | None, BeforeValidator(values.port)] = _setting(
        "RABBITMQ_PORT", None, "The broker's port.", shown="5672"
    )
    rabbitmq_user: Annotated[str | None, BeforeValidator(values.plain_text)] = _setting(
        "RABBITMQ_USER", None, "The user to log in as.", shown="guest"
    )
    rabbitmq_pass: Annotated[SecretStr | None, BeforeValidator(values.plain_text)] = _setting(
        "RABBITMQ_PASS", None, "The user's password.", shown="guest"
    )
    rabbitmq_pass_file: Annotated[SecretStr | None, BeforeValidator(values.secret_in)] = _setting(
        "RABBITMQ_PASS_FILE", None, "A file that holds the password (Docker and Kubernetes secrets).", shown=""
    )
    rabbitmq_url: Annotated[SecretStr | None, BeforeValidator(values.secret_url)] = _setting(
        "RABBITMQ_URL",
        None,
        "The broker's whole address, `amqp://user:password@host:port/vhost` or `amqps://…`; overrides the five above.",
        shown="",
    )
    rabbitmq_url_file: Annotated[SecretStr | None, BeforeValidator(values.secret_url_in)] = _setting(
        "RABBITMQ_URL_FILE", None, "A file that holds the address.", shown=""
    )
    to: Annotated[AmqpTarget | JsonLinesTarget | None, NoDecode, PlainValidator(values.target)] = _setting(
        PREFIX + "TO",
        None,
        "Where events go: `amqp://…`, `amqps://…`, `file:///path`, a path, or `-` (standard output).",
        shown="the broker if one is set, else `-`",
        flag="--to",
    )
    rabbitmq_exchange: Annotated[str, BeforeValidator(values.exchange)] = _setting(
        "RABBITMQ_EXCHANGE", "file_events", "The topic exchange to publish to."
    )
    rabbitmq_heartbeat_s: Annotated[int, values.whole(1, 600)] = _setting(
        "RABBITMQ_HEARTBEAT", 10, "Seconds between signs of life; a broker silent for three of them counts as gone."
    )
    rabbitmq_ca_file: Annotated[str | None, BeforeValidator(values.readable)] = _setting(
        "RABBITMQ_CA_FILE", None, "For `amqps://`: the authorities to trust (PEM).", shown="the system's"
    )
    rabbitmq_cert_file: Annotated[str | None, BeforeValidator(values.readable)] = _setting(
        "RABBITMQ_CERT_FILE", None, "For `amqps://`: our own certificate (PEM).", shown=""
    )
    rabbitmq_key_file: Annotated[str | None, BeforeValidator(values.readable)] = _setting(
        "RABBITMQ_KEY_FILE", None, "For `amqps://`: its key (PEM), unless the certificate's file holds it.", shown=""
    )
    state_dir: Annotated[Path, PlainValidator(folder.parse)] = _setting(
        folder.VARIABLE,
        "",
        "The folder for database and lock; not on a network file system.",
        shown="`/var/lib/trackwatch` in the image, else `$XDG_STATE_HOME/trackwatch` or `~/.local/state/trackwatch`",
    )
    include: Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.pattern_list)] = _setting(
        PREFIX + "INCLUDE",
        AUDIO,
        f"Which files to tell about: {_HOW_PATTERNS}; `{AUDIO}` stands for the audio formats.",
        shown=f"`{AUDIO}`",
    )
    exclude: Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.pattern_list)] = _setting(
        PREFIX + "EXCLUDE",
        "",
        "Which of these to leave out, besides editors', downloaders' and system temporary names, which are left out"
        " anyway unless taken back (`!*.tmp`, or `!*` for all).",
        shown="",
    )
    priority: Annotated[tuple[str, ...], NoDecode, BeforeValidator(values.pattern_list)] = _setting(
        PREFIX + "PRIORITY", "", "Which files are read first; patterns likewise.", shown=""
    )
    metadata: Annotated[MetadataForm, values.word(*MetadataForm)] = _setting(
        PREFIX + "METADATA",
        MetadataForm.STRUCTURED.value,
        "`structured`, or `flat`: every metadata value a string, tags on the same level.",
    )
    settle_s: Annotated[float, values.number(0, 3600)] = _setting(
        PREFIX + "SETTLE_S", 0.25, "Seconds of quiet after which a file is taken as finished."
    )
    settle_max_s: Annotated[float, values.number(0, 86400)] = _setting(
        PREFIX + "SETTLE_MAX_S",
        60.0,
        "Seconds after which a file that is never quiet is described all the same.",
        shown="60",
    )
    sweep_s: Annotated[float, values.number(0.1, 604800)] = _setting(
        PREFIX + "SWEEP_S", 900.0, "Seconds from one full comparison with the disk to the next.", shown="900"
    )
    probe_processes: Annotated[int, values.whole(1, 1000)] = _setting(
        PREFIX + "PROBE_PROCESSES",
        usable_cores,
        "How many processes read files; cold disks and network mounts like more.",
        shown="one for each usable core",
    )
    retention_days: Annotated[float, values.number(0, 36500)] = _setting(
        PREFIX + "RETENTION_DAYS", 7.0, "Days for which published events are kept for replay.", shown="7"
    )
    outbox_max: Annotated[int, values.whole(1, 10**12)] = _setting(
        PREFIX + "OUTBOX_MAX", 10_000_000, "How many events may wait; intake rests while there are more."
    )
    unroutable: Annotated[Unroutable, values.word(*Unroutable)] = _setting(
        PREFIX + "UNROUTABLE",
        Unroutable.HOLD.value,
        "When nobody has bound a queue: `hold` events in order, `park` them and go on, or `drop` them.",
    )
    http: Annotated[tuple[str, int] | None, NoDecode, BeforeValidator(values.http_address)] = _setting(
        PREFIX + "HTTP", None, "host:port for health and metrics; a port alone means this machine only.", shown="off"
    )
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], values.word("debug", "info", "warning", "error")
    ] = _setting(PREFIX + "LOG_LEVEL", "info", "`debug`, `info`, `warning` or `error`.")
    log_format: Annotated[Literal["auto", "json", "console"], values.word("auto", "json", "console")] = _setting(
        PREFIX + "LOG_FORMAT", "auto", "`json`, `console`, or `auto`: console on a terminal, JSON elsewhere."
    )

    _warnings: tuple[str, ...] = PrivateAttr(())

    @field_validator("rabbitmq_pass_file", "rabbitmq_url_file")
    @classmethod
    def _only_one_secret(cls, value: SecretStr, info: ValidationInfo) -> SecretStr:
        plain = str(info.field_name).removesuffix("_file")
        if info.data.get(plain) is not None:
            raise values.Problem(f"{plain.upper()} and {plain.upper()}_FILE are both set: keep one")
        return value

    @field_validator("rabbitmq_ca_file", "rabbitmq_cert_file", "rabbitmq_key_file")
    @classmethod
    def _used_by_tls(cls, value: str, info: ValidationInfo) -> str:
        name = str(info.field_name).upper()
        target = _chosen(info.data)
        if isinstance(target, AmqpTarget) and not target.url.startswith("amqps:"):
            raise values.Problem(f"{name} is set, but the broker's address has no TLS: set RABBITMQ_URL=amqps://…")
        if name == "RABBITMQ_KEY_FILE" and info.data.get("rabbitmq_cert_file", name) is None:
            raise values.Problem("RABBITMQ_KEY_FILE is set without RABBITMQ_CERT_FILE: set both, or none")
        return value

    @field_validator("settle_max_s")
    @classmethod
    def _ceiling_above_quiet(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("settle_s", 0):
            raise ValueError(f"less than TRACKWATCH_SETTLE_S={info.data['settle_s']:g}")
        return value

    @field_validator("exclude")
    @classmethod
    def _does_not_watch_itself(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        value = (*DEFAULT_EXCLUDE, *value)
        data = info.data
        if not {"roots", "state_dir", "include"} <= data.keys():
            return value
        patterns = Patterns(data["include"], value)
        state = os.fsencode(data["state_dir"])
        own = {os.path.join(state, name): ("state", data["state_dir"]) for name in _STATE_FILES}
        if isinstance(to := data.get("to"), JsonLinesTarget) and to.path is not None:
            own[os.fsencode(to.path)] = ("output", to.path)
        for path, (what, where) in own.items():
            for root in data["roots"]:
                below = values.below(path, root)
                if below is not None and patterns.wanted(below):
                    raise values.Problem(
                        f"{what} {str(where)!r} lies in root {os.fsdecode(root)!r} and TRACKWATCH_INCLUDE wants it, so"
                        " each event would cause the next: move it out, or name it in TRACKWATCH_EXCLUDE"
                    )
        return value

    def model_post_init(self, context: Any, /) -> None:
        """Note what is odd, but stops nothing."""
        self._warnings = tuple(_oddities(os.environ))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a person should know about his settings, one line each."""
        return self._warnings

    @property
    def sink(self) -> AmqpTarget | JsonLinesTarget:
        """Where events go: what `--to` says, else the broker if one is set, else standard output."""
        target = _chosen(dict(self))
        if isinstance(target, JsonLinesTarget):
            return target
        return replace(
            target,
            exchange=self.rabbitmq_exchange,
            heartbeat_s=self.rabbitmq_heartbeat_s,
            ca_file=self.rabbitmq_ca_file,
            cert_file=self.rabbitmq_cert_file,
            key_file=self.rabbitmq_key_file,
        )

    @property
    def patterns(self) -> Patterns:
        """What decides which files are wanted."""
        return Patterns(self.include, self.exclude, self.priority)

    @classmethod
    def read(cls, flags: Mapping[str, Any]) -> Self:
        """Validate the environment under these flags, which are named as the variables are."""
        return cls(**flags)


def _chosen(fields: Mapping[str, Any]) -> AmqpTarget | JsonLinesTarget:
    """Return where events go, by the fields that are known to be good."""
    if (to := fields.get("to")) is not None:
        assert isinstance(to, AmqpTarget | JsonLinesTarget)
        return to
    if url := fields.get("rabbitmq_url") or fields.get("rabbitmq_url_file"):
        return AmqpTarget(url.get_secret_value())
    secret = fields.get("rabbitmq_pass") or fields.get("rabbitmq_pass_file")
    host, port, user = (fields.get(f"rabbitmq_{part}") for part in ("host", "port", "user"))
    if host is None and port is None and user is None and secret is None:
        return JsonLinesTarget()
    password = "guest" if secret is None else secret.get_secret_value()
    login = f"{quote(user or 'guest', safe='')}:{quote(password, safe='')}"
    return AmqpTarget(f"amqp://{login}@{host or 'localhost'}:{port or 5672}/")


def _names(field_name: str) -> list[str]:
    """Return the variables of a field, the preferred one first."""
    alias = Settings.model_fields[field_name].validation_alias
    assert isinstance(alias, AliasChoices)
    return [str(choice) for choice in alias.choices]


def _extra(field_name: str) -> Mapping[str, Any]:
    extra = Settings.model_fields[field_name].json_schema_extra
    assert isinstance(extra, Mapping)
    return extra


@dataclass(frozen=True, slots=True)
class Usable:
    """What can be had of wrong settings: those in which wrong values gave way to defaults, None if that does not help.

    `wrong` are the names of the fields that gave way.
    """

    settings: Settings | None
    problems: tuple[str, ...] = ()
    wrong: frozenset[str] = frozenset()


def load_usable(*, roots: Sequence[str] = (), to: str | None = None) -> Usable:
    """Return the settings of this environment as far as they can be used, and every problem: to look at all the rest.

    Whatever belongs to a field that gave way is not what the user meant. Changes the environment while it looks.
    """
    problems: list[str] = []
    wrong: set[str] = set()
    environment = dict(os.environ)
    given = {name: value for name, value in {"roots": tuple(roots) or None, "to": to}.items() if value is not None}
    try:
        while True:
            kept = {name: value for name, value in given.items() if name not in wrong}
            if "roots" in wrong:
                kept["roots"] = _NO_ROOTS
            try:
                settings = Settings.read({_names(name)[0]: value for name, value in kept.items()})
            except ValidationError as error:
                found = [dict(detail) for detail in error.errors(include_url=False)]
                problems += [words for detail in found if (words := _worded(detail, kept)) not in problems]
                fresh = {_field(detail) for detail in found} - wrong
                if not fresh:
                    return Usable(None, tuple(problems), frozenset(wrong))
                wrong |= fresh
                for name in fresh:
                    for variable in _names(name):
                        os.environ.pop(variable, None)
            else:
                return Usable(settings, tuple(problems), frozenset(wrong))
    finally:
        os.environ.clear()
        os.environ.update(environment)


def load(*, roots: Sequence[str] = (), to: str | None = None, **flags: Any) -> Settings:
    """Return the settings of this environment; `flags` are fields of Settings, None for those that were not given.

    Raises:
        ConfigError: with every problem.
    """
    given = {"roots": tuple(roots) or None, "to": to, **flags}
    if unknown := given.keys() - Settings.model_fields.keys():
        raise TypeError(f"no such settings: {', '.join(sorted(unknown))}")
    given = {name: value for name, value in given.items() if value is not None}
    try:
        return Settings.read({_names(name)[0]: value for name, value in given.items()})
    except ValidationError as error:
        problems = [_worded(dict(detail), given) for detail in error.errors(include_url=False)]
        problems += [warning for warning in _oddities(os.environ) if "did you mean" in warning]
    # Outside the handler: the original holds the values, secrets too, and must not travel along as context.
    raise ConfigError(*problems)


def _field(detail: Mapping[str, Any]) -> str:
    return next(name for name in Settings.model_fields if detail["loc"][0] in (name, *_names(name)))


def _worded(detail: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """Return one of pydantic's error details in the user's words."""
    field_name = _field(detail)
    if detail["type"] == "missing":
        return values.NO_ROOT
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, values.Problem):
        return str(cause)
    wrong = detail["msg"] if cause is None else str(cause)
    if field_name in given:
        name, value = _extra(field_name).get("flag") or "--" + field_name.replace("_", "-"), given[field_name]
    else:
        name = next((name for name in _names(field_name) if os.environ.get(name)), _names(field_name)[0])
        value = os.environ.get(name)
    secret = field_name in ("rabbitmq_pass", "rabbitmq_url") or (
        field_name == "to" and ("@" in str(value) or str(value).lower().startswith("amqp"))
    )
    if value is None or secret:
        return f"{name}: {wrong}"
    text = str(value)
    text = text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "…"
    return f"{name}={text if values.printable(text) and ' ' not in text else repr(text)}: {wrong}"


def _oddities(environment: Mapping[str, str]) -> list[str]:
    """Return warnings: variables that look like ours and are not, and deprecated ones."""
    known = [name for field_name in Settings.model_fields for name in _names(field_name)]
    found = []
    for name in sorted(environment):
        if not name.startswith(PREFIX) or name in known or _KUBERNETES.search(name):
            continue
        bare = name.removeprefix(PREFIX)
        close = [bare] if bare in known else get_close_matches(name, known, 1)
        found.append(f"{name}: no such setting" + (f"; did you mean {close[0]}?" if close else ""))
    if environment.get("RABBITMQ_PORT", "").startswith(values.KUBERNETES_LINK):
        found.append("RABBITMQ_PORT is Kubernetes' note of a service, not a port, and ignored; set it to the number")
    if environment.get(DEPRECATED_ROOT):
        ignored = " (which is set too, and counts)" if environment.get("DATA_DIR") else ""
        found.append(f"{DEPRECATED_ROOT} is deprecated: use DATA_DIR{ignored}")
    return found


def explain() -> list[tuple[str, str, str]]:
    """Return name, default and meaning of every variable, for people; Markdown."""
    return [
        (name, "", "Deprecated: DATA_DIR.")
        if name == DEPRECATED_ROOT
        else (name, _extra(field_name)["shown"], Settings.model_fields[field_name].description or "")
        for field_name in Settings.model_fields
        for name in _names(field_name)
    ]
