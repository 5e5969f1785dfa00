"""The outbox and what leaves it: durable puts, delivery to RabbitMQ, and a full outbox that drains.

- puts (`puts.py`): durable puts a second while 100 wait, beside the best of three SQLite queues of others;
- delivery (`delivery.py`): confirmed, persistent messages a second to one durable queue, from the outbox with all its
  bookkeeping, beside clients without one, by payload and by size of batch;
  The node runs on this machine as it comes, and shares its cores with who sends;
- drain (`drain.py`): the real daemon finds an outbox full of rows, and sends them to a queue that nobody reads: the
  rate of the last tenth beside that of the first one, and the most memory beside that of a daemon with nothing to send.
"""

from functools import partial

from tests.bench import delivery, puts
from tests.bench.broker import declare_queue
from tests.bench.drain import Drain, drain
from tests.bench.figures import Figure, Growth, Part, in_turn
from tests.bench.measure import Spread
from tests.bench.restart import start
from tests.bench.run import Run
from trackwatch.publisher import BATCH_EVENTS

PUTS_SHARE, DELIVERY_SHARE = 0.3, 0.6  # of what is left each time
PUTS_S = 1.0
PUTS_GOAL = 4.0
OF_GATHER = (0.6, 1.5)
MORE_BYTES = (0, 4_000, 16_000)
BATCHES = (1, 20, BATCH_EVENTS, 1000)
MESSAGES = (5_000, 20_000)  # in each turn: with little time, and with much
MUCH_S = 300.0
TURNS = 5
ROWS, ROWS_A_SECOND = (20_000, 200_000), 2_000  # a drain, where nobody says of how many; a cautious guess of its rate
LAST_TENTH, MEMORY_MB = 0.9, 150.0
# The kinds of queues: what most people declare, and what holds many messages that nobody reads.
QUEUE, DRAIN_QUEUE = "classic", "lazy"


def measure_puts(run: Run, result: Part, seconds: float) -> None:
    """Compare queues on the disk."""
    run.say("outbox: durable puts")
    rates = puts.measure(run, run.budget.share(PUTS_SHARE), seconds)
    ours = rates.puts_per_s[puts.OURS]
    peers = [peer for peer in puts.PEERS if peer in rates.puts_per_s]
    if peers:
        best = [max(turn) for turn in zip(*(rates.puts_per_s[peer] for peer in peers), strict=True)]
        result.figures.append(
            Figure.of(
                "durable puts",
                "puts/s",
                ours,
                "the best other queue",
                best,
                "more",
                goal=PUTS_GOAL,
                question="How fast is an event safe on the disk?",
            )
        )
    result.figures += [
        Figure.not_measured(f"durable puts, beside {peer}", f"{peer} is not installed; `make bench` does it")
        for peer in puts.PEERS
        if peer not in peers
    ]
    result.tables["Durable puts"] = [
        {
            "queue": name,
            "driven by": f"{rates.threads[name]} threads" if name in puts.PEERS else f"{puts.TASKS} tasks",
            "puts/s": (spread := Spread.of(values)).median,
            "from": spread.smallest,
            "to": spread.largest,
            "puts a sync": rates.puts_a_sync.get(name, "not counted"),
        }
        for name, values in rates.puts_per_s.items()
    ]
    result.details["puts"] = rates


def measure_delivery(run: Run, result: Part, messages: int) -> None:
    """Compare clients, payloads and batches."""
    run.say("outbox: delivery")
    few = max(200, messages // 10)
    with run.vhost() as url:
        declare_queue(url, QUEUE)
        send = partial(delivery.send, run, url)
        ways = {way: partial(send, way, few if way == "blocking" else messages) for way in delivery.WAYS}
        for more in MORE_BYTES[1:]:
            for way in ("ours", "gather"):
                ways[f"{way}, {more}"] = partial(send, way, messages // 2, more_bytes=more)
        for batch in BATCHES:
            if batch != BATCH_EVENTS:
                ways[f"batch {batch}"] = partial(send, "session", few if batch == 1 else messages, batch=batch)
        turns = in_turn(ways, run.budget.share(DELIVERY_SHARE), most=TURNS)
    rates = {way: [sent.per_s for sent in taken] for way, taken in turns.items()}
    plain = f"{delivery.payload_bytes(0):,} bytes a message"
    limit, goal = OF_GATHER
    compared = partial(Figure.of, unit="messages/s", better="more")
    result.figures += [
        compared(
            f"delivery, {plain}",
            ours=rates["ours"],
            beside="aio-pika, gathered, no outbox",
            theirs=rates["gather"],
            limit=limit,
            goal=goal,
            question="How fast do confirmed messages leave?",
        ),
        compared(f"delivery, {plain}", ours=rates["ours"], beside="our session, no outbox", theirs=rates["session"]),
        compared(f"delivery, {plain}", ours=rates["ours"], beside="a bare socket", theirs=rates["socket"]),
        compared(f"delivery, {plain}", ours=rates["ours"], beside="pika, one at a time", theirs=rates["blocking"]),
    ]
    rows: list[dict[str, object]] = []
    points = []
    for more in MORE_BYTES:
        ours, gather = (f"{way}, {more}" if more else way for way in ("ours", "gather"))
        size_bytes = delivery.payload_bytes(more)
        points.append((float(size_bytes), Spread.of(rates[ours]).median))
        if more:
            result.figures.append(
                compared(
                    f"delivery, {size_bytes:,} bytes a message",
                    ours=rates[ours],
                    beside="aio-pika, gathered, no outbox",
                    theirs=rates[gather],
                    limit=limit,
                    goal=goal,
                )
            )
        rows.append(
            {
                "bytes a message": size_bytes,
                "from the outbox, messages/s": Spread.of(rates[ours]).median,
                "MB/s": Spread.of(rates[ours]).median * size_bytes / 1e6,
                "aio-pika, gathered, messages/s": Spread.of(rates[gather]).median,
                "the broker's CPU, us a message": 1e6
                * Spread.of(sent.broker_cpu_s_each for sent in turns[ours]).median,
            }
        )
    result.tables["Delivery by payload"] = rows
    if growth := Growth.through(points):
        result.remarks.append(
            f"From the outbox, the rate goes with the payload's size to the power of {growth.slope:.2f}."
        )
    result.tables["Our session alone, by batch"] = [
        {
            "messages in a batch": batch,
            "messages/s": (spread := Spread.of(rates["session" if batch == BATCH_EVENTS else f"batch {batch}"])).median,
            "from": spread.smallest,
            "to": spread.largest,
        }
        for batch in BATCHES
    ]
    result.details["delivery"] = turns


def measure_drain(run: Run, result: Part, rows: int) -> None:
    """Let a full outbox drain."""
    run.say(f"outbox: {rows:,} rows drain")
    empty = run.fresh("empty")
    empty.mkdir()
    drains: list[Drain] = []
    nothing = []
    for _ in run.budget.turns(1, TURNS):
        drains.append(drain(run, rows, DRAIN_QUEUE))
        nothing.append(start(empty, run.fresh("state")).pss_bytes / 1e6)
    first, last = ([each.tenths_per_s[tenth] for each in drains] for tenth in (0, -1))
    peaks = [each.peak_pss_bytes / 1e6 for each in drains]
    title = f"{rows:,} rows drain"
    result.figures += [
        Figure.of(
            f"{title}, last tenth",
            "events/s",
            last,
            "first tenth",
            first,
            "more",
            limit=LAST_TENTH,
            question="What does a full outbox take that drains?",
        ),
        Figure.of(
            f"{title}, peak",
            "MB",
            peaks,
            "trackwatch, nothing to send",
            nothing,
            "less",
            question="What does a full outbox take that drains?",
        ),
    ]
    result.tables[f"A full outbox drains ({DRAIN_QUEUE} queue)"] = [
        {
            "rows": rows,
            "s": Spread.of(each.seconds for each in drains).median,
            "events/s": Spread.of(rows / each.seconds for each in drains).median,
            "MB/s": Spread.of(each.size_bytes / each.seconds / 1e6 for each in drains).median,
            "peak MB": Spread.of(peaks).median,
            f"at most {MEMORY_MB:.0f} MB": "yes" if max(peaks) <= MEMORY_MB else "no",
            "CPU s": Spread.of(each.cpu_s for each in drains).median,
        }
    ]
    result.details["drain"] = drains


def part(run: Run, result: Part, puts_s: float = PUTS_S, messages: int = 0) -> None:
    """Measure all three."""
    few, many = MESSAGES
    messages = messages or (many if run.budget.left_s >= MUCH_S else few)
    if messages < many:
        result.left_out.append(f"delivery: {messages:,} messages a turn, instead of {many:,}")
    measure_puts(run, result, puts_s)
    measure_delivery(run, result, messages)
    least, most = ROWS
    rows = run.rows or max(least, min(most, int(run.budget.left_s * ROWS_A_SECOND) // least * least))
    if not run.rows:
        result.left_out.append(f"drain: {rows:,} rows; a million is measured with ROWS=1000000")
    measure_drain(run, result, rows)
