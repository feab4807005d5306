-- name: SeenShard :exec
INSERT INTO shards (shard, used) VALUES (?, ?) ON CONFLICT (shard) DO UPDATE SET used = max(shards.used, excluded.used);

-- name: SeenLedgerSequence :exec
INSERT INTO ledger_counters (class_code, last) VALUES (?, ?)
ON CONFLICT (class_code) DO UPDATE SET last = max(ledger_counters.last, excluded.last);

-- name: JumpShards :exec
UPDATE shards SET used = min(shards.used + sqlc.arg(by), CAST(sqlc.arg(capacity) AS INTEGER));

-- name: JumpLedgerCounters :exec
UPDATE ledger_counters SET last = ledger_counters.last + sqlc.arg(by);

-- name: FreeUID :exec
INSERT INTO uids (uid, free_from) VALUES (?, ?) ON CONFLICT (uid) DO NOTHING;
