package client_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"google.golang.org/grpc"

	"github.com/dals-host/dals-host/sdk/client"
	"github.com/dals-host/dals-host/sdk/identity"
	hostv1 "github.com/dals-host/dals-host/sdk/proto/host/v1"
)

// Forge a worker. On a real host the socket is /var/lib/dals/host.sock.
func ExampleClient_Forge() {
	host := startHost()
	defer host.stop()
	ctx := context.Background()

	c, err := client.Dial(ctx, client.Config{Host: host.socket})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	entry, err := c.Forge(ctx, client.ForgeRequest{Name: "nora", Type: "template", ClassCode: "A1"})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("worker created: %s on port %d\n", entry.WorkerSerial, entry.Port)
	// Output: worker created: DMN-TP-1-0000abcd-00001 on port 20001
}

// See what would be made, and make nothing.
func ExampleClient_Forge_dryRun() {
	host := startHost()
	defer host.stop()
	ctx := context.Background()

	c, err := client.Dial(ctx, client.Config{Host: host.socket})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	plan, err := c.Forge(ctx, client.ForgeRequest{Name: "nora", Type: "template", ClassCode: "A1", DryRun: true})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("would create:", plan.WorkerSerial)
	for _, step := range plan.Plan {
		fmt.Printf("%s: %s\n", step.Step, step.Makes)
	}
	// Output:
	// would create: DMN-TP-1-0000abcd-00001
	// open stage: a folder
}

// List the registered worker types, and look at one.
func ExampleClient_Types() {
	host := startHost()
	defer host.stop()
	ctx := context.Background()

	c, err := client.Dial(ctx, client.Config{Host: host.socket})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	types, err := c.Types(ctx)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, t := range types {
		fmt.Println(t.Name, t.Version)
	}
	// Of several versions the highest whose binary is there.
	template, err := c.Type(ctx, "template")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("found:", template.Name, template.Version, "for", template.Tasks[0].Kind)
	_, err = c.Type(ctx, "xyz")
	fmt.Println(err)
	// Output:
	// template 1.9.0
	// template 1.10.0
	// template 2.0.0
	// ledger 0.1.0
	// found: template 1.10.0 for template.echo
	// worker type 'xyz' is not registered
}

// Send a signed envelope with an enrolled key, as dals-host client add makes it.
func ExampleClient_Send() {
	host := startHost()
	defer host.stop()
	ctx := context.Background()

	pem, err := os.ReadFile(host.keyFile)
	if err != nil {
		fmt.Println(err)
		return
	}
	key, err := identity.ParseKey(pem)
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := client.Dial(ctx, client.Config{Host: host.socket, Key: key})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	result, err := c.Send(ctx, client.SendRequest{
		Worker: "nora", Kind: "template.echo", Input: map[string]string{"message": "hello"},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var echo struct{ Message string }
	if err := json.Unmarshal(result.Result, &echo); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(result.Status, echo.Message)
	// Output: ok hello
}

// Tell one no from another, and say what to do about it.
func ExampleError() {
	host := startHost()
	defer host.stop()
	ctx := context.Background()

	c, err := client.Dial(ctx, client.Config{Host: host.socket})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer c.Close()
	_, err = c.Worker(ctx, "nobody")
	if no, ok := errors.AsType[*client.Error](err); ok && no.Code == client.CodeNotFound {
		fmt.Println("there is no such worker:", no.Hint)
	}
	// Output: there is no such worker: run dals-host workers
}

// exampleHost is a host for the examples: it answers as a real one does.
type exampleHost struct {
	socket  string
	keyFile string
	stop    func()
}

func startHost() exampleHost {
	dir, err := os.MkdirTemp("", "dals-example-")
	if err != nil {
		panic(err)
	}
	h := exampleHost{socket: filepath.Join(dir, "host.sock"), keyFile: filepath.Join(dir, "operator.key")}
	pem, err := identity.MarshalKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)))
	if err != nil {
		panic(err)
	}
	if err := os.WriteFile(h.keyFile, pem, 0o600); err != nil {
		panic(err)
	}
	listener, err := net.Listen("unix", h.socket)
	if err != nil {
		panic(err)
	}
	server := grpc.NewServer()
	hostv1.RegisterHostServiceServer(server, &fakeHost{key: ed25519.NewKeyFromSeed(bytes.Repeat([]byte{2}, 32))})
	go server.Serve(listener)
	h.stop = func() {
		server.Stop() // waits for Serve
		os.RemoveAll(dir)
	}
	return h
}
