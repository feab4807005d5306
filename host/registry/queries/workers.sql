-- name: InsertWorker :exec
INSERT INTO workers (
    serial, name, type, type_version, plugin_digest, class_code, model_number, ledger_code, port, uid, own_uid,
    state, state_reason, launcher, public_key, glyph, manifest_sha256, image_digest, config, request_sha256,
    restarts, created_at, retired_at, grants, memory_bytes, cpu_millis, pids,
    restart_tries
) VALUES (
    ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?, ?, ?,
    ?, ?, ?, ?, ?, ?, ?,
    ?
);

-- name: UpdateWorker :exec
UPDATE workers SET
    name = ?, type = ?, type_version = ?, plugin_digest = ?, class_code = ?, model_number = ?, ledger_code = ?, port = ?,
    uid = ?, state = ?, state_reason = ?, launcher = ?, public_key = ?, glyph = ?, manifest_sha256 = ?, image_digest = ?,
    config = ?, request_sha256 = ?, restarts = ?, created_at = ?, retired_at = ?, grants = ?,
    memory_bytes = ?, cpu_millis = ?, pids = ?, restart_tries = ?
WHERE serial = ?;

-- name: DeleteWorker :exec
DELETE FROM workers WHERE serial = ?;

-- name: WorkerBySerial :one
SELECT * FROM workers WHERE serial = ?;

-- name: WorkerByName :one
SELECT * FROM workers WHERE name = ? AND state <> 'retired';

-- name: NewestRetiredByName :one
SELECT * FROM workers WHERE name = ? AND state = 'retired' ORDER BY retired_at DESC, rowid DESC LIMIT 1;

-- name: AllWorkers :many
SELECT * FROM workers ORDER BY created_at, serial;

-- name: WorkersNotRetired :many
SELECT * FROM workers WHERE state <> 'retired' ORDER BY created_at, serial;

-- name: CountWorkers :one
SELECT count(*) FROM workers
WHERE state <> 'retired' AND type = sqlc.arg(type) AND (type_version = sqlc.arg(version) OR CAST(sqlc.arg(version) AS TEXT) = '');
