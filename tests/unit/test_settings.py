"""Settings: what is read from where, and the words for what cannot be used."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from trackwatch import folder
from trackwatch.errors import ConfigError, ExitCode
from trackwatch.event import MetadataForm
from trackwatch.settings import Settings, explain, granted_cores, load
from trackwatch.values import AmqpTarget, JsonLinesTarget, Unroutable

Environment = Callable[..., None]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environment:
    """Return a setter of variables; to begin with there is nothing but a home."""
    for name in list(os.environ):
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def put(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


def problems(**flags: object) -> list[str]:
    """Return what `load` complains about."""
    with pytest.raises(ConfigError) as caught:
        load(**flags)  # type: ignore[arg-type]  # any flag, to see what becomes of it
    assert caught.value.exit_code == ExitCode.USAGE
    assert "\n".join(caught.value.problems) == str(caught.value)
    assert all("\n" not in problem for problem in caught.value.problems)
    return list(caught.value.problems)


# ---- defaults and their order


def test_one_root_is_all_that_is_needed(tmp_path: Path) -> None:
    """The documented defaults."""
    made = load(roots=["/music"])
    assert made.roots == (b"/music",)
    assert made.instance_id is None
    assert made.max_concurrent_files == 100
    assert made.rabbitmq_exchange == "file_events"
    assert made.rabbitmq_heartbeat_s == 10
    assert made.state_dir == tmp_path / "home/.local/state/trackwatch"
    assert made.metadata is MetadataForm.STRUCTURED
    assert (made.settle_s, made.settle_max_s, made.sweep_s) == (0.25, 60.0, 900.0)
    assert made.probe_processes == len(os.sched_getaffinity(0))
    assert (made.retention_days, made.outbox_max) == (7.0, 10_000_000)
    assert made.unroutable is Unroutable.HOLD
    assert made.http is None
    assert (made.log_level, made.log_format) == ("info", "auto")
    assert made.warnings == ()
    assert made.sink == JsonLinesTarget()
    assert made.patterns.wanted(b"song.mp3")
    assert not made.patterns.wanted(b"song.tmp")


def test_every_variable_counts(environment: Environment) -> None:
    """Each of those that are not about the broker, with a value that is not its default."""
    environment(
        DATA_DIR="/a:/b",
        INSTANCE_ID="Küche 1",
        MAX_CONCURRENT_FILES="7",
        TRACKWATCH_STATE_DIR="/state",
        TRACKWATCH_INCLUDE="*.cue",
        TRACKWATCH_EXCLUDE="Inbox/",
        TRACKWATCH_PRIORITY="new/",
        TRACKWATCH_METADATA="flat",
        TRACKWATCH_SETTLE_S="0.5",
        TRACKWATCH_SETTLE_MAX_S="5",
        TRACKWATCH_SWEEP_S="60",
        TRACKWATCH_PROBE_PROCESSES="3",
        TRACKWATCH_RETENTION_DAYS="0.5",
        TRACKWATCH_OUTBOX_MAX="1000",
        TRACKWATCH_UNROUTABLE="park",
        TRACKWATCH_HTTP="[::1]:8080",
        TRACKWATCH_LOG_LEVEL="DEBUG",
        TRACKWATCH_LOG_FORMAT="json",
    )
    made = load()
    assert made.roots == (b"/a", b"/b")
    assert made.instance_id == "Küche 1"
    assert made.max_concurrent_files == 7
    assert made.state_dir == Path("/state")
    assert made.patterns.wanted(b"disc.cue")
    assert not made.patterns.wanted(b"song.mp3")
    assert not made.patterns.wanted(b"Inbox/disc.cue")
    assert not made.patterns.wanted(b"._disc.cue")
    assert made.patterns.priority(b"new/disc.cue")
    assert made.metadata is MetadataForm.FLAT
    assert (made.settle_s, made.settle_max_s, made.sweep_s) == (0.5, 5.0, 60.0)
    assert (made.probe_processes, made.retention_days, made.outbox_max) == (3, 0.5, 1000)
    assert made.unroutable is Unroutable.PARK
    assert made.http == ("::1", 8080)
    assert (made.log_level, made.log_format) == ("debug", "json")


def test_a_flag_goes_before_the_environment(environment: Environment) -> None:
    """Also an argument before DATA_DIR, and None is a flag that was not given."""
    environment(DATA_DIR="/a", MAX_CONCURRENT_FILES="7", TRACKWATCH_SETTLE_S="1")
    made = load(roots=["/b"], max_concurrent_files=8, settle_s=None)
    assert made.roots == (b"/b",)
    assert made.max_concurrent_files == 8
    assert made.settle_s == 1.0


def test_a_variable_that_is_set_to_nothing_is_not_set(environment: Environment) -> None:
    """Compose files pass empty strings for what nobody has set."""
    environment(DATA_DIR="/a", MAX_CONCURRENT_FILES="", RABBITMQ_URL="", TRACKWATCH_HTTP="", INSTANCE_ID="")
    made = load()
    assert made.max_concurrent_files == 100
    assert made.sink == JsonLinesTarget()
    assert made.instance_id is None


def test_settings_cannot_be_changed() -> None:
    """Everyone may keep what he was given."""
    with pytest.raises(ValueError, match="frozen"):
        load(roots=["/a"]).max_concurrent_files = 5


def test_a_flag_that_is_no_setting_is_a_defect() -> None:
    """It is the programmer's mistake, not the user's."""
    with pytest.raises(TypeError, match="colour"):
        load(roots=["/a"], colour="red")


# ---- roots and state


def test_without_a_root_the_remedy_is_told(environment: Environment) -> None:
    """Exactly one line, with both ways to name one."""
    line = "no root to watch: name one (trackwatch run ~/Music) or set DATA_DIR"
    assert problems() == [line]
    environment(DATA_DIR=":")
    assert problems() == [line]


def test_roots_are_absolute_bytes_each_once(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Relative ones, a home, a trailing slash, bytes that are not UTF-8, and an argument with a colon."""
    monkeypatch.chdir(tmp_path)
    here = os.fsencode(tmp_path)
    environment(DATA_DIR=os.fsdecode(b"a/:./a:~/Music:/x/\xff::/y/../z"))
    assert load().roots == (here + b"/a", here + b"/home/Music", b"/x/\xff", b"/z")
    assert load(roots=["/a:b", "."]).roots == (b"/a:b", here)


@pytest.mark.parametrize(("roots", "inner", "outer"), [(["/m", "/m/live"], "/m/live", "/m"), (["/x", "/"], "/x", "/")])
def test_a_root_inside_another_is_refused(roots: list[str], inner: str, outer: str) -> None:
    """Its files would be told about twice."""
    (line,) = problems(roots=roots)
    assert line.startswith(f"root '{inner}' lies inside root '{outer}': name the outer one alone")


def test_neighbours_with_a_common_beginning_are_fine() -> None:
    """/m2 is not inside /m."""
    assert load(roots=["/m", "/m2"]).roots == (b"/m", b"/m2")


def test_an_empty_argument_is_not_the_current_directory() -> None:
    """`trackwatch run "$UNSET"` must not watch whatever is here."""
    assert problems(roots=[""]) == ["root '': an empty name is no directory (for the current one write .)"]


def test_the_state_folder_follows_the_xdg_rules(environment: Environment, tmp_path: Path) -> None:
    """A flag, a variable, XDG_STATE_HOME if it is absolute, the home."""
    assert folder.state_dir() == tmp_path / "home/.local/state/trackwatch"
    environment(XDG_STATE_HOME="relative")
    assert folder.state_dir() == tmp_path / "home/.local/state/trackwatch"
    environment(XDG_STATE_HOME="/xdg")
    assert folder.state_dir() == Path("/xdg/trackwatch") == load(roots=["/a"]).state_dir
    environment(TRACKWATCH_STATE_DIR="~/here")
    assert folder.state_dir() == tmp_path / "home/here" == load(roots=["/a"]).state_dir
    assert folder.state_dir("/there") == Path("/there") == load(roots=["/a"], state_dir="/there").state_dir


def test_a_user_without_a_home_must_name_a_state_folder(
    monkeypatch: pytest.MonkeyPatch, environment: Environment
) -> None:
    """As in a container under a number that nobody has named."""
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert problems(roots=["/a"]) == [
        "TRACKWATCH_STATE_DIR: there is no home directory for the state; set TRACKWATCH_STATE_DIR"
    ]
    with pytest.raises(ConfigError, match="set TRACKWATCH_STATE_DIR"):
        folder.state_dir()


def test_a_state_that_would_be_watched_is_refused(environment: Environment) -> None:
    """Inside a root is fine as long as no pattern wants its files: else each event would cause the next."""
    flags = {"roots": ["/m"], "state_dir": "/m/.state"}
    assert load(**flags).state_dir == Path("/m/.state")  # type: ignore[arg-type]  # two types of flags in one dict
    environment(TRACKWATCH_INCLUDE="*")
    (line,) = problems(**flags)
    assert line.startswith("state '/m/.state' lies in root '/m' and TRACKWATCH_INCLUDE wants it")
    environment(TRACKWATCH_EXCLUDE=".state/")
    assert load(**flags).state_dir == Path("/m/.state")  # type: ignore[arg-type]  # as above
    (line,) = problems(**flags, to="/m/events.jsonl")
    assert line.startswith("output '/m/events.jsonl' lies in root '/m'")


# ---- where events go


@pytest.mark.parametrize(
    ("variables", "url"),
    [
        ({"RABBITMQ_HOST": "rabbit"}, "amqp://guest:guest@rabbit:5672/"),
        ({"RABBITMQ_HOST": "::1"}, "amqp://guest:guest@[::1]:5672/"),
        ({"RABBITMQ_PORT": "5673"}, "amqp://guest:guest@localhost:5673/"),
        ({"RABBITMQ_USER": "me@home"}, "amqp://me%40home:guest@localhost:5672/"),
        ({"RABBITMQ_PASS": "p@/:%?#ü"}, "amqp://guest:p%40%2F%3A%25%3F%23%C3%BC@localhost:5672/"),
        ({"RABBITMQ_URL": "amqp://h"}, "amqp://h"),
        ({"RABBITMQ_URL": "AMQPS://me:p@ss%2F@h:1/v?x=1", "RABBITMQ_HOST": "x"}, "amqps://me:p%40ss%2F@h:1/v?x=1"),
    ],
)
def test_any_broker_variable_chooses_the_broker(environment: Environment, variables: dict[str, str], url: str) -> None:
    """The others have their defaults, user and password are percent-encoded, and a whole address overrides them."""
    environment(**variables)
    sink = load(roots=["/a"]).sink
    assert isinstance(sink, AmqpTarget)
    assert sink.url == url
    assert sink.exchange == "file_events"


def test_secrets_may_come_from_files(environment: Environment, tmp_path: Path) -> None:
    """As Docker and Kubernetes mount them, with the newline that an editor has left."""
    (tmp_path / "pass").write_text("s3cr/et\n")
    (tmp_path / "url").write_text("amqp://u:s3cret@h/v\r\n")
    environment(RABBITMQ_PASS_FILE=str(tmp_path / "pass"))
    sink = load(roots=["/a"]).sink
    assert isinstance(sink, AmqpTarget)
    assert sink.url == "amqp://guest:s3cr%2Fet@localhost:5672/"
    environment(RABBITMQ_URL_FILE=str(tmp_path / "url"))
    sink = load(roots=["/a"]).sink
    assert isinstance(sink, AmqpTarget)
    assert sink.url == "amqp://u:s3cret@h/v"


def test_to_goes_before_the_broker(environment: Environment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Standard output, files in three spellings, another broker."""
    monkeypatch.chdir(tmp_path)
    environment(RABBITMQ_HOST="rabbit", RABBITMQ_EXCHANGE="others", RABBITMQ_HEARTBEAT="30")
    assert load(roots=["/a"], to="-").sink == JsonLinesTarget(None)
    assert load(roots=["/a"], to="file:///x/y%20z.jsonl").sink == JsonLinesTarget("/x/y z.jsonl")
    assert load(roots=["/a"], to="file://localhost/x").sink == JsonLinesTarget("/x")
    assert load(roots=["/a"], to="events.jsonl").sink == JsonLinesTarget(str(tmp_path / "events.jsonl"))
    assert load(roots=["/a"], to="amqp://u:p@other/").sink == AmqpTarget("amqp://u:p@other/", "others", 30)
    environment(TRACKWATCH_TO="-")
    assert load(roots=["/a"]).sink == JsonLinesTarget(None)


@pytest.mark.parametrize(
    ("to", "line"),
    [
        ("kafka://x", "--to=kafka://x: kafka:// is unknown; use amqp://, amqps://, file:///path, a path, or -"),
        ("http://me:s3cret@x", "--to: http:// is unknown"),
        ("file://server/x", "--to=file://server/x: not a file of this machine; write file:///path"),
        ("file:///", "--to=file:///: not a file; use"),
        ("/", "--to=/: not a file; use"),
        ("", "--to='': not a file; use"),
        ("amqp://u:s3cret@:1", "--to: names no host"),
        ("amqp:u:s3cret", "--to: does not begin with amqp:// or amqps://"),
    ],
)
def test_a_target_that_cannot_be_is_refused(to: str, line: str) -> None:
    """With what would be one, and never with a password."""
    (problem,) = problems(roots=["/a"], to=to)
    assert problem.startswith(line)
    assert "s3cret" not in problem


def test_tls_files_go_with_the_target(environment: Environment, tmp_path: Path) -> None:
    """All three, for an amqps address."""
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text("pem")
        environment(**{f"RABBITMQ_{name.upper()}_FILE": str(tmp_path / name)})
    environment(RABBITMQ_URL="amqps://h")
    files = [str(tmp_path / name) for name in ("ca", "cert", "key")]
    assert load(roots=["/a"]).sink == AmqpTarget("amqps://h", "file_events", 10, *files)


def test_a_certificate_without_tls_is_refused(environment: Environment, tmp_path: Path) -> None:
    """Whoever names authorities must not find his password sent in the clear."""
    (tmp_path / "ca").write_text("pem")
    environment(RABBITMQ_HOST="h", RABBITMQ_CA_FILE=str(tmp_path / "ca"))
    assert problems(roots=["/a"]) == [
        "RABBITMQ_CA_FILE is set, but the broker's address has no TLS: set RABBITMQ_URL=amqps://…"
    ]
    assert load(roots=["/a"], to="-").sink == JsonLinesTarget()


def test_a_key_needs_its_certificate(environment: Environment, tmp_path: Path) -> None:
    """Half a pair is a mistake."""
    (tmp_path / "key").write_text("pem")
    environment(RABBITMQ_URL="amqps://h", RABBITMQ_KEY_FILE=str(tmp_path / "key"))
    assert problems(roots=["/a"]) == ["RABBITMQ_KEY_FILE is set without RABBITMQ_CERT_FILE: set both, or none"]


def test_targets_can_be_shown() -> None:
    """The address without password and query; words for the rest."""
    assert AmqpTarget("amqp://u:s3cret@h:1/v?k=s3cret").display == "amqp://u@h:1/v"
    assert AmqpTarget("amqps://h").display == "amqps://h/"
    assert JsonLinesTarget().display == "standard output"
    assert JsonLinesTarget("/x").display == "/x"


def test_secrets_are_never_shown(environment: Environment, tmp_path: Path) -> None:
    """Neither in a repr nor in any message, whatever is wrong with them or beside them."""
    (tmp_path / "pass").write_text("s3cret")
    (tmp_path / "url").write_text("amqp://u:s3cret/x@h")
    environment(DATA_DIR="/a", RABBITMQ_PASS_FILE=str(tmp_path / "pass"))
    made = load(to="amqp://u:s3cret@h")
    assert "s3cret" not in repr(made)
    assert "s3cret" not in repr(made.sink)
    assert "s3cret" not in str(made)
    environment(RABBITMQ_PASS="s3cret", RABBITMQ_URL="amqp://u:s3cret#@h", RABBITMQ_URL_FILE=str(tmp_path / "url"))
    with pytest.raises(ConfigError) as caught:
        load(to="amqps:s3cret@", max_concurrent_files="ten")
    assert len(caught.value.problems) == 5
    assert "s3cret" not in str(caught.value)
    assert caught.value.__context__ is None
    assert caught.value.__cause__ is None
    with pytest.raises(ValueError, match="RABBITMQ_URL") as raw:
        Settings()
    assert "s3cret" not in str(raw.value)


# ---- problems


@pytest.mark.parametrize(
    ("text", "address"),
    [("9464", ("127.0.0.1", 9464)), ("0.0.0.0:80", ("0.0.0.0", 80)), ("[::]:80", ("::", 80)), ("off", None)],
)
def test_a_port_alone_is_one_of_this_machine_only(
    environment: Environment, text: str, address: tuple[str, int] | None
) -> None:
    environment(DATA_DIR="/a", TRACKWATCH_HTTP=text)
    assert load().http == address


@pytest.mark.parametrize(
    ("name", "value", "wrong"),
    [
        ("MAX_CONCURRENT_FILES", "ten", "not a whole number from 1 to 1000"),
        ("MAX_CONCURRENT_FILES", "0", "not a whole number from 1 to 1000"),
        ("MAX_CONCURRENT_FILES", "1_0", "not a whole number from 1 to 1000"),
        ("MAX_CONCURRENT_FILES", "5.0", "not a whole number from 1 to 1000"),
        ("RABBITMQ_PORT", "65536", "not a whole number from 1 to 65535"),
        ("RABBITMQ_HOST", "rabbit:5672", "not a host name (the port goes into RABBITMQ_PORT"),
        ("RABBITMQ_HEARTBEAT", "0", "not a whole number from 1 to 600"),
        ("RABBITMQ_EXCHANGE", "x" * 100 + "\x1b", "not 1 to 255 bytes of printable text"),
        ("RABBITMQ_USER", "\udcff", "is not UTF-8 text"),
        ("RABBITMQ_PASS_FILE", "/nowhere/x", "cannot be read (no such file or directory)"),
        ("RABBITMQ_PASS_FILE", "/", "cannot be read (is a directory)"),
        ("RABBITMQ_PASS_FILE", "/dev/null", "is empty"),
        ("RABBITMQ_CA_FILE", "/nowhere/x", "cannot be read (no such file or directory)"),
        ("INSTANCE_ID", " ", "not 1 to 128 printable characters"),
        ("INSTANCE_ID", "x" * 129, "not 1 to 128 printable characters"),
        ("INSTANCE_ID", "a\nb", "not 1 to 128 printable characters"),
        ("INSTANCE_ID", "\udcff", "not 1 to 128 printable characters"),
        ("TRACKWATCH_INCLUDE", "*.mp3,!", "'!' is not a gitignore pattern"),
        ("TRACKWATCH_EXCLUDE", "/", "'/' is a pattern that matches nothing"),
        ("TRACKWATCH_METADATA", "xml", "not one of structured, flat"),
        ("TRACKWATCH_SETTLE_S", "-1", "not a number from 0 to 3600"),
        ("TRACKWATCH_SETTLE_S", "nan", "not a number from 0 to 3600"),
        ("TRACKWATCH_SETTLE_MAX_S", "0.1", "less than TRACKWATCH_SETTLE_S=0.25"),
        ("TRACKWATCH_SWEEP_S", "0", "not a number from 0.1 to 604800"),
        ("TRACKWATCH_UNROUTABLE", "lose", "not one of hold, park, drop"),
        ("TRACKWATCH_HTTP", "here", "not host:port with a port from 1 to 65535, such as 127.0.0.1:9464, or off"),
        ("TRACKWATCH_HTTP", "h:0", "not host:port with a port from 1 to 65535, such as 127.0.0.1:9464, or off"),
        ("TRACKWATCH_HTTP", ":80", "no host before the port: 127.0.0.1 for this machine alone, 0.0.0.0 for everybody"),
        ("TRACKWATCH_LOG_LEVEL", "loud", "not one of debug, info, warning, error"),
        ("TRACKWATCH_LOG_FORMAT", "xml", "not one of auto, json, console"),
    ],
)
def test_a_wrong_value_is_told_with_what_would_be_right(
    environment: Environment, name: str, value: str, wrong: str
) -> None:
    """Name, value, and what it should be, in one line."""
    environment(DATA_DIR="/a", **{name: value})
    (line,) = problems()
    assert line.startswith(f"{name}=")
    assert wrong in line
    assert line.isprintable()


def test_the_words_are_those_of_the_design(environment: Environment) -> None:
    """Values stand as they were written; quoted where that would be unclear, cut where they are endless."""
    environment(DATA_DIR="/a", MAX_CONCURRENT_FILES="ten")
    assert problems() == ["MAX_CONCURRENT_FILES=ten: not a whole number from 1 to 1000"]
    environment(MAX_CONCURRENT_FILES="t en")
    assert problems() == ["MAX_CONCURRENT_FILES='t en': not a whole number from 1 to 1000"]
    environment(MAX_CONCURRENT_FILES="9" * 5000)
    assert len(problems()[0]) < 250
    assert problems(max_concurrent_files="x") == ["--max-concurrent-files=x: not a whole number from 1 to 1000"]


def test_every_problem_is_told_at_once(environment: Environment) -> None:
    """In the order of the documentation, and a probable typo among them."""
    environment(
        MAX_CONCURRENT_FILES="ten",
        RABBITMQ_PORT="x",
        TRACKWATCH_UNROUTABLE="y",
        TRACKWATCH_HTTP="z",
        TRACKWATCH_SETLE_S="1",
    )
    told = problems(log_level="loud")
    assert [line.split(":")[0].split("=")[0] for line in told] == [
        "no root to watch",
        "MAX_CONCURRENT_FILES",
        "RABBITMQ_PORT",
        "TRACKWATCH_UNROUTABLE",
        "TRACKWATCH_HTTP",
        "--log-level",
        "TRACKWATCH_SETLE_S",
    ]


@pytest.mark.parametrize(("plain", "value"), [("RABBITMQ_PASS", "x"), ("RABBITMQ_URL", "amqp://h")])
def test_a_secret_given_twice_is_refused(environment: Environment, tmp_path: Path, plain: str, value: str) -> None:
    """Nobody can know which one was meant."""
    (tmp_path / "secret").write_text(value)
    environment(DATA_DIR="/a", **{plain: value, f"{plain}_FILE": str(tmp_path / "secret")})
    assert problems() == [f"{plain} and {plain}_FILE are both set: keep one"]


def test_a_secret_file_that_is_no_text_is_refused(environment: Environment, tmp_path: Path) -> None:
    """Somebody has named the wrong file; what it holds is not repeated."""
    (tmp_path / "secret").write_bytes(b"\xff\xfe")
    environment(DATA_DIR="/a", RABBITMQ_PASS_FILE=str(tmp_path / "secret"))
    assert problems() == [f"RABBITMQ_PASS_FILE={tmp_path}/secret: does not hold UTF-8 text"]
    (tmp_path / "url").write_text("http://s3cret")
    environment(RABBITMQ_PASS_FILE="", RABBITMQ_URL_FILE=str(tmp_path / "url"))
    assert problems() == [
        f"RABBITMQ_URL_FILE={tmp_path}/url: the address in it: does not begin with amqp:// or amqps://"
    ]


@pytest.mark.parametrize(
    "url", ["amqp://h:0", "amqp://h:x", "amqp://", "rabbit:5672", "http://h", "amqp://h/#x", "amqp://a b"]
)
def test_an_address_that_cannot_be_connected_to_is_refused(environment: Environment, url: str) -> None:
    """Before the daemon starts, and without repeating it."""
    environment(DATA_DIR="/a", RABBITMQ_URL=url)
    (line,) = problems()
    assert line.startswith("RABBITMQ_URL: ")
    assert url not in line


# ---- patterns


@pytest.mark.parametrize(
    ("text", "patterns"),
    [
        ("*.mp3", ("*.mp3",)),
        ("*.mp3, *.cue ,,", ("*.mp3", "*.cue")),
        ("Earth\\, Wind & Fire/,*.cue", ("Earth, Wind & Fire/", "*.cue")),
        ("Earth, Wind & Fire/\n*.cue\n", ("Earth, Wind & Fire/", "*.cue")),
        ("# music\n\n@audio\n", ("# music", "@audio")),
    ],
)
def test_patterns_stand_in_lines_or_between_commas(
    environment: Environment, text: str, patterns: tuple[str, ...]
) -> None:
    """Lines as git has them; commas where a variable has but one line."""
    environment(DATA_DIR="/a", TRACKWATCH_INCLUDE=text)
    assert load().include == patterns


def test_exclusion_adds_to_the_default(environment: Environment) -> None:
    """Who excludes his podcasts still does not want temporary files, unless he says so."""
    environment(DATA_DIR="/a", TRACKWATCH_EXCLUDE="Podcasts/")
    assert not load().patterns.wanted(b"Podcasts/x.mp3")
    assert not load().patterns.wanted(b"._x.mp3")
    environment(TRACKWATCH_EXCLUDE="!*")
    assert load().patterns.wanted(b"._x.mp3")


# ---- warnings


def test_a_deprecated_name_works_and_warns(environment: Environment) -> None:
    """DATA_DIR goes before it."""
    environment(FILE_WATCHER_SCAN_PATH="/old")
    assert load().roots == (b"/old",)
    assert load().warnings == ("FILE_WATCHER_SCAN_PATH is deprecated: use DATA_DIR",)
    environment(DATA_DIR="/new")
    assert load().roots == (b"/new",)
    assert load().warnings == ("FILE_WATCHER_SCAN_PATH is deprecated: use DATA_DIR (which is set too, and counts)",)


def test_a_probable_typo_warns(environment: Environment) -> None:
    """With the name that was probably meant, if any is near."""
    environment(DATA_DIR="/a", TRACKWATCH_SETTLE="1", TRACKWATCH_DATA_DIR="/b", TRACKWATCH_QQQQQQQQQQQQQQQ="1")
    assert load().warnings == (
        "TRACKWATCH_DATA_DIR: no such setting; did you mean DATA_DIR?",
        "TRACKWATCH_QQQQQQQQQQQQQQQ: no such setting",
        "TRACKWATCH_SETTLE: no such setting; did you mean TRACKWATCH_SETTLE_S?",
    )


def test_what_kubernetes_says_of_its_services_does_no_harm(environment: Environment) -> None:
    """Services called rabbitmq and trackwatch set variables of these names in every pod."""
    environment(
        DATA_DIR="/a",
        RABBITMQ_PORT="tcp://10.0.0.1:5672",
        RABBITMQ_SERVICE_HOST="10.0.0.1",
        RABBITMQ_PORT_5672_TCP="tcp://10.0.0.1:5672",
        TRACKWATCH_PORT="tcp://10.0.0.2:8080",
        TRACKWATCH_SERVICE_HOST="10.0.0.2",
        TRACKWATCH_SERVICE_PORT="8080",
        TRACKWATCH_PORT_8080_TCP_ADDR="10.0.0.2",
    )
    made = load()
    assert made.sink == JsonLinesTarget()
    assert made.warnings == (
        "RABBITMQ_PORT is Kubernetes' note of a service, not a port, and ignored; set it to the number",
    )


# ---- documentation


def test_every_setting_is_explained() -> None:
    """A name, whatever default, and a sentence for each variable; every field has a variable."""
    rows = explain()
    assert len(rows) == len({name for name, _, _ in rows}) == len(Settings.model_fields) + 1
    for name, default, meaning in rows:
        assert name.isupper()
        assert "\n" not in default + meaning
        assert "|" not in default + meaning
        assert meaning.endswith(".")
    assert ("MAX_CONCURRENT_FILES", "100", "How many files are in flight at once.") in rows


@pytest.mark.parametrize(
    ("ours", "quotas", "cores"),
    [
        ("0::/", {"": "200000 100000"}, 2),
        ("0::/", {"": "max 100000"}, None),
        ("0::/", {"": "150000 100000"}, 2),
        ("0::/", {"": "10000 100000"}, 1),
        ("0::/a/b", {"a": "300000 100000", "a/b": "max 100000"}, 3),
        ("0::/a/b", {"a": "300000 100000", "a/b": "100000 100000"}, 1),
        ("0::/a/b", {"a/b/c": "100000 100000"}, None),
        ("1:cpu:/", {"": "100000 100000"}, None),
        ("0::/", {"": "broken"}, None),
    ],
)
def test_a_container_with_a_limit_of_two_cores_has_two(
    tmp_path: Path, ours: str, quotas: dict[str, str], cores: int | None
) -> None:
    """However many its host has; the groups above count, too."""
    for group, quota in quotas.items():
        (tmp_path / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / group / "cpu.max").write_text(quota + "\n")
    proc = tmp_path / "proc"
    proc.write_text(f"2:memory:/x\n{ours}\n")
    assert granted_cores(proc, tmp_path) == (cores or granted_cores(tmp_path / "missing"))
    assert granted_cores(tmp_path / "missing") > 1000
