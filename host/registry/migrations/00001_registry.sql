-- +goose Up

-- Times are Unix milliseconds, UTC; 0 where there is none.

CREATE TABLE workers (
    serial          TEXT    NOT NULL PRIMARY KEY,
    name            TEXT    NOT NULL,
    type            TEXT    NOT NULL,
    type_version    TEXT    NOT NULL,
    plugin_digest   TEXT    NOT NULL,
    class_code      TEXT    NOT NULL,
    model_number    TEXT    NOT NULL,
    ledger_code     TEXT    NOT NULL UNIQUE,
    port            INTEGER NOT NULL,
    uid             INTEGER NOT NULL,
    -- 1 where the uid was allocated for this worker alone; 0 where all workers
    -- share the uid of a host that is not root.
    own_uid         INTEGER NOT NULL CHECK (own_uid IN (0, 1)),
    state           TEXT    NOT NULL,
    state_reason    TEXT    NOT NULL,
    launcher        TEXT    NOT NULL,
    public_key      BLOB    NOT NULL,
    glyph           TEXT    NOT NULL,
    manifest_sha256 TEXT    NOT NULL,
    image_digest    TEXT    NOT NULL,
    config          BLOB    NOT NULL,
    request_sha256  TEXT    NOT NULL,
    restarts        INTEGER NOT NULL,
    created_at      INTEGER NOT NULL,
    retired_at      INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX workers_name ON workers (name) WHERE state <> 'retired';
CREATE UNIQUE INDEX workers_port ON workers (port) WHERE state <> 'retired' AND port > 0;
CREATE UNIQUE INDEX workers_uid ON workers (uid) WHERE state <> 'retired' AND own_uid = 1;
CREATE INDEX workers_not_retired ON workers (created_at, serial) WHERE state <> 'retired';
CREATE INDEX workers_of_type ON workers (type, type_version) WHERE state <> 'retired';
CREATE INDEX workers_retired_name ON workers (name, retired_at) WHERE state = 'retired';

-- The last shard drawn is the one that serials are counted in.
CREATE TABLE shards (
    id    INTEGER PRIMARY KEY AUTOINCREMENT,
    shard INTEGER NOT NULL UNIQUE,
    used  INTEGER NOT NULL
) STRICT;

CREATE TABLE ledger_counters (
    class_code TEXT    NOT NULL PRIMARY KEY,
    last       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Every uid ever allocated; free_from is 0 while a worker has it.
CREATE TABLE uids (
    uid       INTEGER PRIMARY KEY,
    free_from INTEGER NOT NULL
) STRICT;

CREATE INDEX uids_free ON uids (uid, free_from) WHERE free_from > 0;

CREATE TABLE port_quarantine (
    port  INTEGER PRIMARY KEY,
    until INTEGER NOT NULL
) STRICT;

CREATE INDEX port_quarantine_until ON port_quarantine (until);

CREATE TABLE clients (
    id         TEXT    NOT NULL PRIMARY KEY,
    name       TEXT    NOT NULL,
    public_key BLOB    NOT NULL,
    created_at INTEGER NOT NULL,
    revoked_at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX clients_name ON clients (name) WHERE revoked_at = 0;

CREATE TABLE descriptors (
    digest     TEXT    NOT NULL PRIMARY KEY,
    type       TEXT    NOT NULL,
    version    TEXT    NOT NULL,
    descriptor BLOB    NOT NULL,
    probed_at  INTEGER NOT NULL
) STRICT;

CREATE TABLE types (
    name          TEXT    NOT NULL,
    version       TEXT    NOT NULL,
    digest        TEXT    NOT NULL REFERENCES descriptors (digest),
    owner_uid     INTEGER NOT NULL,
    registered_at INTEGER NOT NULL,
    PRIMARY KEY (name, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX types_digest ON types (digest);

CREATE TABLE quarantined (
    digest TEXT    NOT NULL PRIMARY KEY,
    reason TEXT    NOT NULL,
    fix    TEXT    NOT NULL,
    at     INTEGER NOT NULL
) STRICT;

-- Envelopes that were admitted and have no result yet.
CREATE TABLE deliveries (
    envelope_id TEXT    NOT NULL,
    sender      TEXT    NOT NULL,
    serial      TEXT    NOT NULL,
    attempt     INTEGER NOT NULL,
    header      BLOB    NOT NULL,
    admitted_at INTEGER NOT NULL,
    deadline    INTEGER NOT NULL,
    log_index   INTEGER NOT NULL,
    PRIMARY KEY (envelope_id, sender)
) STRICT;

-- A result names its envelope, worker and attempt: that must say which.
CREATE UNIQUE INDEX deliveries_attempt ON deliveries (envelope_id, serial, attempt);
CREATE INDEX deliveries_serial ON deliveries (serial, log_index);

-- The record's entries, one row per commit group: blob holds count entries,
-- each after its length as an unsigned varint.
CREATE TABLE record_groups (
    first_index INTEGER PRIMARY KEY,
    count       INTEGER NOT NULL CHECK (count > 0),
    at          INTEGER NOT NULL,
    blob        BLOB    NOT NULL
) STRICT;

CREATE INDEX record_groups_at ON record_groups (at);

CREATE TABLE meta (
    key   TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
) STRICT, WITHOUT ROWID;
