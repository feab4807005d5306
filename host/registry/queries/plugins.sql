-- name: PutDescriptor :exec
INSERT INTO descriptors (digest, type, version, descriptor, probed_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET
    type = excluded.type, version = excluded.version, descriptor = excluded.descriptor, probed_at = excluded.probed_at;

-- name: Descriptors :many
SELECT * FROM descriptors ORDER BY type, version, digest;

-- name: PutType :exec
INSERT INTO types (name, version, digest, owner_uid, registered_at) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (name, version) DO UPDATE SET
    digest = excluded.digest, owner_uid = excluded.owner_uid, registered_at = excluded.registered_at;

-- name: DeleteType :exec
DELETE FROM types WHERE name = ? AND version = ?;

-- name: Types :many
SELECT * FROM types ORDER BY name, version;

-- name: PutQuarantined :exec
INSERT INTO quarantined (digest, reason, fix, at) VALUES (?, ?, ?, ?)
ON CONFLICT (digest) DO UPDATE SET reason = excluded.reason, fix = excluded.fix, at = excluded.at;

-- name: DeleteQuarantined :exec
DELETE FROM quarantined WHERE digest = ?;

-- name: Quarantined :many
SELECT * FROM quarantined ORDER BY at, digest;
