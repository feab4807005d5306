-- name: NextInShard :one
UPDATE shards SET used = shards.used + 1
WHERE id = (SELECT max(s.id) FROM shards s) AND shards.used < sqlc.arg(capacity)
RETURNING shard, used;

-- name: CountShards :one
SELECT count(*) FROM shards;

-- name: InsertShard :execrows
INSERT INTO shards (shard, used) VALUES (?, 0) ON CONFLICT (shard) DO NOTHING;

-- name: NextLedgerSequence :one
INSERT INTO ledger_counters (class_code, last)
VALUES (?, 1 + COALESCE((SELECT CAST(m.value AS INTEGER) FROM meta m WHERE m.key = 'ledger_floor'), 0))
ON CONFLICT (class_code) DO UPDATE SET last = ledger_counters.last + 1
RETURNING last;

-- name: LowestFreeUID :one
SELECT uid FROM uids
WHERE uid >= sqlc.arg(low) AND uid <= sqlc.arg(high) AND free_from > 0 AND free_from <= sqlc.arg(now)
ORDER BY uid LIMIT 1;

-- name: HighestUID :one
SELECT uid FROM uids WHERE uid >= sqlc.arg(low) AND uid <= sqlc.arg(high) ORDER BY uid DESC LIMIT 1;

-- name: TakeUID :exec
INSERT INTO uids (uid, free_from) VALUES (?, 0) ON CONFLICT (uid) DO UPDATE SET free_from = 0;

-- name: UIDInUse :one
SELECT CAST(EXISTS (SELECT 1 FROM uids WHERE uid = ? AND free_from = 0) AS INTEGER);

-- name: FreeUIDOf :exec
UPDATE uids SET free_from = sqlc.arg(free_from)
WHERE uid = (SELECT w.uid FROM workers w WHERE w.serial = sqlc.arg(serial) AND w.own_uid = 1 AND w.state <> 'retired');

-- name: HoldUID :exec
UPDATE uids SET free_from = -1 WHERE uid = ?;

-- name: FreeHeldUID :exec
UPDATE uids SET free_from = sqlc.arg(free_from) WHERE uid = sqlc.arg(uid) AND free_from = -1;

-- name: HeldUIDs :many
SELECT uid FROM uids WHERE free_from = -1 ORDER BY uid;

-- name: PortTaken :one
SELECT CAST(
    EXISTS (SELECT 1 FROM workers w WHERE w.port = sqlc.arg(port) AND w.port > 0 AND w.state <> 'retired')
    OR EXISTS (SELECT 1 FROM port_quarantine q WHERE q.port = sqlc.arg(port) AND q.until > sqlc.arg(now))
AS INTEGER);

-- name: QuarantinePort :exec
INSERT INTO port_quarantine (port, until) VALUES (?, ?) ON CONFLICT (port) DO UPDATE SET until = excluded.until;

-- name: EndPortQuarantines :exec
DELETE FROM port_quarantine WHERE until <= ?;
