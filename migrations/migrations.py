"""The schema of trackwatch's state, one step after the other: append only, never edit a step that was released.

Each step runs inside one transaction together with the record that it ran (`trackwatch/store.py` opens it with BEGIN
IMMEDIATE), so a step is either whole or absent. What a row must satisfy is written as a CHECK or a trigger: a wrong row
cannot be stored.

Inside a step use `db.executescript`: sqlite-utils' own keeps the transaction, the raw connection's commits it.
"""

from sqlite_utils import Database, Migrations

migrations = Migrations("trackwatch")


@migrations()
def m0001_initial(db: Database) -> None:
    """Roots, the catalogue of confirmed files, their problems, and the outbox.

    Paths are bytes, because names are. A subtree is the range `path >= dir || '/' AND path < dir || '0'`.
    Times end in their unit; `_us` is microseconds since 1970 UTC.
    """
    db.executescript("""
CREATE TABLE setting(
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL) STRICT, WITHOUT ROWID;

-- A root keeps its id while its files are known, whatever is mounted there today.
CREATE TABLE root(
  id INTEGER PRIMARY KEY,
  path BLOB NOT NULL UNIQUE CHECK(length(path) > 0),
  swept_us INTEGER,
  files INTEGER NOT NULL DEFAULT 0, -- of the catalogue, with their size; kept by its triggers, for each look at status
  size_bytes INTEGER NOT NULL DEFAULT 0,
  accepted_us INTEGER) STRICT; -- when a person said that what is missing is really gone; NULL once that was done

-- What a root consisted of when its files were last compared; path is relative to the root, empty for what holds it.
CREATE TABLE root_mount(
  root_id INTEGER NOT NULL REFERENCES root(id),
  path BLOB NOT NULL,
  source BLOB NOT NULL,
  fstype BLOB NOT NULL,
  fsid INTEGER NOT NULL,
  inner BLOB NOT NULL,
  PRIMARY KEY(root_id, path)) STRICT, WITHOUT ROWID;

-- Directories with a name in them that is not UTF-8, when the root was last swept: they are not to be watched.
CREATE TABLE root_odd(
  root_id INTEGER NOT NULL REFERENCES root(id),
  path BLOB NOT NULL, -- relative to the root
  PRIMARY KEY(root_id, path)) STRICT, WITHOUT ROWID;

-- What was last confirmed, and told, about each file. `path` is relative to its root.
CREATE TABLE catalogue(
  id INTEGER PRIMARY KEY,
  root_id INTEGER NOT NULL REFERENCES root(id),
  path BLOB NOT NULL CHECK(length(path) > 0),
  dev INTEGER NOT NULL,
  inode INTEGER NOT NULL,
  size_bytes INTEGER NOT NULL CHECK(size_bytes >= 0),
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  btime_ns INTEGER,
  sha256 BLOB NOT NULL CHECK(length(sha256) = 32),
  xxh128 BLOB NOT NULL CHECK(length(xxh128) = 16),
  last_seq INTEGER NOT NULL,
  UNIQUE(root_id, path)) STRICT;
CREATE INDEX catalogue_inode ON catalogue(inode);
CREATE INDEX catalogue_sha256 ON catalogue(sha256);

-- Of audio files. Apart from the catalogue, so that comparing a million signatures does not read a million tag sets.
-- `audio_xxh128` is of the encoded audio alone, and NULL where it is not known for certain. When a release hashes other
-- bytes of a file than the one before (`spans.py`), its migration sets it to NULL everywhere.
CREATE TABLE catalogue_metadata(
  file_id INTEGER PRIMARY KEY REFERENCES catalogue(id) ON DELETE CASCADE,
  metadata TEXT,
  metadata_error TEXT,
  audio_xxh128 BLOB CHECK(length(audio_xxh128) = 16),
  CHECK(metadata IS NOT NULL OR metadata_error IS NOT NULL)) STRICT;
CREATE INDEX catalogue_metadata_error ON catalogue_metadata(file_id) WHERE metadata_error IS NOT NULL;

-- Files that could not be described at all.
CREATE TABLE problem(
  root_id INTEGER NOT NULL REFERENCES root(id),
  path BLOB NOT NULL,
  reason TEXT NOT NULL,
  since_us INTEGER NOT NULL,
  PRIMARY KEY(root_id, path)) STRICT, WITHOUT ROWID;

-- The event log. AUTOINCREMENT: a plain rowid would be used again after pruning, and `seq` is a promise to consumers.
CREATE TABLE outbox(
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  event_id BLOB NOT NULL UNIQUE CHECK(length(event_id) = 16),
  event_type TEXT NOT NULL CHECK(event_type IN ('created', 'modified', 'deleted', 'moved', 'renamed')),
  path BLOB NOT NULL,
  old_path BLOB,
  created_us INTEGER NOT NULL,
  payload BLOB NOT NULL CHECK(length(payload) > 0)) STRICT;

-- What was never sent, or set aside. A narrow table beside an immutable log costs less write-ahead log than state
-- columns in it. `generation` grows when a row is replayed: a confirm of an earlier sending then no longer fits.
CREATE TABLE outbox_pending(
  seq INTEGER PRIMARY KEY REFERENCES outbox(seq),
  generation INTEGER NOT NULL DEFAULT 0,
  parked INTEGER NOT NULL DEFAULT 0 CHECK(parked IN (0, 1)),
  attempts INTEGER NOT NULL DEFAULT 0,
  last_error TEXT,
  CHECK(parked = 0 OR last_error IS NOT NULL)) STRICT;
CREATE INDEX outbox_parked ON outbox_pending(seq) WHERE parked = 1;

-- What is to be sent again: a lane of its own, so that new events need not wait behind a hundred thousand old ones.
-- An event is never here and unparked in outbox_pending at once.
CREATE TABLE outbox_replay(
  seq INTEGER PRIMARY KEY REFERENCES outbox(seq),
  generation INTEGER NOT NULL) STRICT;

-- What those events are about: a new event of a file must not overtake those of it that are to be sent again.
CREATE TABLE outbox_replay_path(
  path BLOB NOT NULL,
  seq INTEGER NOT NULL,
  PRIMARY KEY(path, seq)) STRICT, WITHOUT ROWID;

CREATE TRIGGER catalogue_added AFTER INSERT ON catalogue
  BEGIN UPDATE root SET files = files + 1, size_bytes = size_bytes + new.size_bytes WHERE id = new.root_id; END;
CREATE TRIGGER catalogue_removed AFTER DELETE ON catalogue
  BEGIN UPDATE root SET files = files - 1, size_bytes = size_bytes - old.size_bytes WHERE id = old.root_id; END;
CREATE TRIGGER catalogue_changed AFTER UPDATE OF root_id, size_bytes ON catalogue
  WHEN old.root_id <> new.root_id OR old.size_bytes <> new.size_bytes
  BEGIN
    UPDATE root SET files = files - 1, size_bytes = size_bytes - old.size_bytes WHERE id = old.root_id;
    UPDATE root SET files = files + 1, size_bytes = size_bytes + new.size_bytes WHERE id = new.root_id;
  END;
CREATE TRIGGER outbox_enqueue AFTER INSERT ON outbox
  BEGIN INSERT INTO outbox_pending(seq) VALUES (new.seq); END;
CREATE TRIGGER outbox_immutable BEFORE UPDATE ON outbox
  BEGIN SELECT RAISE(ABORT, 'outbox rows are immutable'); END;
CREATE TRIGGER outbox_replay_enqueue AFTER INSERT ON outbox_replay
  BEGIN INSERT INTO outbox_replay_path
    SELECT path, seq FROM outbox WHERE seq = new.seq
    UNION SELECT old_path, seq FROM outbox WHERE seq = new.seq AND old_path IS NOT NULL; END;
CREATE TRIGGER outbox_replay_done AFTER DELETE ON outbox_replay
  BEGIN DELETE FROM outbox_replay_path WHERE seq = old.seq AND path IN (
    SELECT path FROM outbox WHERE seq = old.seq UNION SELECT old_path FROM outbox WHERE seq = old.seq); END;
CREATE TRIGGER outbox_no_early_prune BEFORE DELETE ON outbox
  WHEN EXISTS (SELECT 1 FROM outbox_pending WHERE seq = old.seq)
    OR EXISTS (SELECT 1 FROM outbox_replay WHERE seq = old.seq)
  BEGIN SELECT RAISE(ABORT, 'event not published'); END;
""")
