package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// newProxy makes a server that passes every call to the driver, so that what
// csi-sanity judges is the driver's own answer: message, status, metadata. The
// one answer it adds to is that of GetPluginCapabilities. The caller's deadline
// reaches the driver because the context of the call does.
func newProxy(driver string) (*grpc.Server, error) {
	connection, err := grpc.NewClient("unix://"+driver,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		// No answer is to be made up, nor a second one asked for, where the
		// first one is an error.
		grpc.WithDisableRetry(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(bytesCodec{})))
	if err != nil {
		return nil, fmt.Errorf("the driver's socket %s: %w", driver, err)
	}
	pass := func(_ any, stream grpc.ServerStream) error { return pass(connection, stream) }
	return grpc.NewServer(
		grpc.ForceServerCodecV2(bytesCodec{}),
		grpc.UnknownServiceHandler(pass)), nil
}

// pass answers one call. All of CSI's calls but those of snapshot metadata have
// one request and one answer.
func pass(driver *grpc.ClientConn, stream grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(stream)
	if !ok {
		return status.Error(codes.Internal, "proxy: a call without a method")
	}
	var request, answer []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}

	var header, trailer metadata.MD
	err := driver.Invoke(outgoing(stream.Context()), method, &request, &answer,
		grpc.Header(&header), grpc.Trailer(&trailer))
	// Also those of a failed call; a call that never got anywhere has none.
	if header := withoutTransport(header); len(header) > 0 {
		if err := stream.SetHeader(header); err != nil {
			return err
		}
	}
	stream.SetTrailer(withoutTransport(trailer))
	if err != nil {
		return err
	}

	if method == csi.Identity_GetPluginCapabilities_FullMethodName {
		if answer, err = withControllerService(answer); err != nil {
			return status.Errorf(codes.Internal, "proxy: %v", err)
		}
	}
	return stream.SendMsg(&answer)
}

// outgoing is the context for the driver of a call that came with `incoming`.
func outgoing(incoming context.Context) context.Context {
	received, _ := metadata.FromIncomingContext(incoming)
	return metadata.NewOutgoingContext(incoming, withoutTransport(received))
}

// withoutTransport leaves out what either connection says for itself: sent on,
// it would be there twice.
func withoutTransport(received metadata.MD) metadata.MD {
	kept := metadata.MD{}
	for key, values := range received {
		switch {
		case strings.HasPrefix(key, ":"), strings.HasPrefix(key, "grpc-"),
			key == "content-type", key == "user-agent":
		default:
			kept[key] = values
		}
	}
	return kept
}

func withControllerService(encoded []byte) ([]byte, error) {
	var answer csi.GetPluginCapabilitiesResponse
	if err := proto.Unmarshal(encoded, &answer); err != nil {
		return nil, err
	}
	answer.Capabilities = append(answer.Capabilities, controllerService())
	return proto.Marshal(&answer)
}

// bytesCodec leaves messages as they are on the wire, so that fields which this
// version of the specification does not know pass as well.
type bytesCodec struct{}

// Name is empty, because it goes into the content type, and no client of CSI
// says more than "application/grpc".
func (bytesCodec) Name() string { return "" }

func (bytesCodec) Marshal(message any) (mem.BufferSlice, error) {
	bytes, ok := message.(*[]byte)
	if !ok {
		return nil, errNoBytes
	}
	return mem.BufferSlice{mem.SliceBuffer(*bytes)}, nil
}

func (bytesCodec) Unmarshal(data mem.BufferSlice, message any) error {
	bytes, ok := message.(*[]byte)
	if !ok {
		return errNoBytes
	}
	// A copy: the buffers go back to their pool.
	*bytes = data.Materialize()
	return nil
}

var errNoBytes = errors.New("the message is not *[]byte")
