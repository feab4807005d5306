-- name: InsertGroup :exec
INSERT INTO record_groups (first_index, count, at, blob) VALUES (?, ?, ?, ?);

-- name: LastGroup :one
SELECT first_index, count FROM record_groups ORDER BY first_index DESC LIMIT 1;

-- name: GroupStart :one
SELECT first_index FROM record_groups WHERE first_index <= ? ORDER BY first_index DESC LIMIT 1;

-- name: GroupStartSince :one
SELECT CAST(COALESCE(min(first_index), -1) AS INTEGER) FROM record_groups WHERE at >= ?;

-- name: NewestBefore :one
SELECT CAST(COALESCE(max(at), 0) AS INTEGER) FROM record_groups WHERE at < ?;

-- name: GroupFrom :one
SELECT * FROM record_groups WHERE first_index >= ? ORDER BY first_index LIMIT 1;

-- name: SetMeta :exec
INSERT INTO meta (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value;

-- name: Meta :one
SELECT value FROM meta WHERE key = ?;

-- name: DeleteMeta :exec
DELETE FROM meta WHERE key = ?;
