// What csi-sanity needs beside a driver that has no controller: one that makes
// volumes out of nothing, and a way to the driver's socket on which it looks as
// if it had a controller of its own. Only tests use it.
package main

import (
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"

	"google.golang.org/grpc"
)

func main() {
	controller := flag.String("controller", "", "`socket` where to serve the controller")
	proxy := flag.String("proxy", "", "`socket` where to serve what the driver serves, and CONTROLLER_SERVICE")
	driver := flag.String("driver", "", "`socket` of the driver")
	flag.Parse()
	if *controller == "" || *proxy == "" || *driver == "" || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(64)
	}
	if err := run(*controller, *proxy, *driver); err != nil {
		fmt.Fprintln(os.Stderr, "peer:", err)
		os.Exit(1)
	}
}

// run serves both sockets until a signal, or until one of them fails.
func run(controllerPath, proxyPath, driverPath string) error {
	proxy, err := newProxy(driverPath)
	if err != nil {
		return err
	}
	servers := map[string]*grpc.Server{controllerPath: newController(), proxyPath: proxy}
	ended := make(chan error, len(servers))
	for path, server := range servers {
		listener, err := net.Listen("unix", path)
		if err != nil {
			return err
		}
		go func() { ended <- server.Serve(listener) }()
	}

	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	select {
	case <-signals:
	case err = <-ended:
		if err == nil {
			err = errors.New("a socket was closed")
		}
	}
	// Stopping closes the listeners, and so removes the sockets.
	for _, server := range servers {
		server.Stop()
	}
	return err
}
