-- name: InsertClient :exec
INSERT INTO clients (id, name, public_key, created_at, revoked_at) VALUES (?, ?, ?, ?, 0);

-- name: RevokeClient :one
UPDATE clients SET revoked_at = ? WHERE name = ? AND revoked_at = 0
RETURNING *;

-- name: Client :one
SELECT * FROM clients WHERE id = ?;

-- name: Clients :many
SELECT * FROM clients ORDER BY created_at, id;
