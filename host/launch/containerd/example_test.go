package containerd_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/dals-host/dals-host/host/launch"
	"github.com/dals-host/dals-host/host/launch/containerd"
	"github.com/dals-host/dals-host/host/worker"
)

// A whole life of one worker. Its folder and the store are made by others.
func Example() {
	ctx := context.Background()
	_, err := containerd.Available(ctx)
	if err == nil {
		err = live(ctx)
	}
	if err != nil {
		log.Fatalf("%v: %s", err, worker.HintOf(err))
	}
}

func live(ctx context.Context) error {
	l, err := containerd.New(ctx, containerd.Config{
		DataDir: "/var/lib/dals", HostID: "0123456789abcdef", Logger: hclog.Default(),
	})
	if err != nil {
		return err
	}
	defer l.Close() // workers stay

	const digest = "c0ffee…"
	image := launch.Image{Digest: digest, Path: "/var/lib/dals/store/sha256/" + digest, Type: "template", Version: "1.0.0"}
	if _, err := l.Prepare(ctx, image); err != nil {
		return err
	}
	const serial = worker.Serial("DMN-TP-1-deadbeef-00000")
	err = l.Create(ctx, launch.Spec{
		Serial: serial, Image: image, Dir: "/var/lib/dals/workers/instances/" + string(serial), UID: 70000,
	})
	if err != nil {
		return err
	}
	if err := l.Start(ctx, serial); err != nil {
		return err
	}
	exit, err := l.Wait(ctx, serial)
	if err != nil {
		return err
	}
	fmt.Println(exit)
	if err := l.Stop(ctx, serial, 5*time.Second); err != nil { // settles the run; Start may follow
		return err
	}
	return l.Remove(ctx, serial)
}
