package control

import (
	"bufio"
	"context"
	"io"

	"google.golang.org/grpc"

	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Backuper writes backups of the host.
type Backuper interface {
	// Backup writes one file to w. The passphrase encrypts the keys; without one
	// they are left out.
	Backup(ctx context.Context, passphrase string, w io.Writer) error
}

// backupChunk is how much of a backup travels in one message.
const backupChunk = 256 << 10

// Backup sends a backup as it is written. It is whole only if the stream ends
// without an error.
func (s *service) Backup(r *hostv1.BackupRequest, stream grpc.ServerStreamingServer[hostv1.BackupResponse]) error {
	w := bufio.NewWriterSize(writerFunc(func(data []byte) (int, error) {
		for sent := 0; sent < len(data); sent += backupChunk {
			chunk := data[sent:min(sent+backupChunk, len(data))]
			if err := stream.Send(&hostv1.BackupResponse{Data: chunk}); err != nil {
				return sent, err
			}
		}
		return len(data), nil
	}), backupChunk)
	if err := s.Backups.Backup(stream.Context(), r.GetPassphrase(), w); err != nil {
		return err
	}
	return w.Flush()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }
