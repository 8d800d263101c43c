/* SPDX-License-Identifier: MIT */
/*
 * QoS2 for Linux: the eleven calls of Windows' QoS2 API (qWAVE), answered by the daemon qos2d.
 *
 * Source-compatible: names, numbers, structures and their layout, error codes and the order of parameters are
 * those of Windows' qos2.h, so that QoS code written there compiles here unchanged. Link with -lqwave. What each
 * call does, and every difference to Windows, is in docs/api.md and docs/porting.md of the project.
 *
 * Include it alone, or behind headers of a porting layer (Wine's, say) that have the Windows types: then define
 * QOS2_NO_WIN32_TYPES, and only what is QoS2's own is declared. A type of another size stops the compilation;
 * GetLastError and SetLastError of such a layer are used where they are ordinary C functions, else the library's.
 *
 * A call returns nonzero for success and 0 (FALSE) for failure, which GetLastError() tells, thread by thread.
 * errno is left as it was. Every call may be made from any thread, also at the same time on one handle, but from
 * no signal handler; pthread_cancel() takes effect after a call. A handle belongs to the process that made it.
 */
#ifndef QOS2_H
#define QOS2_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- What windows.h has ---------------------------------------------------------------------------------- */

#ifndef QOS2_NO_WIN32_TYPES

/* For programs that write it; the calls themselves follow C's calling convention, also below a porting layer. */
#ifndef WINAPI
#define WINAPI
#endif
#ifndef FALSE
#define FALSE 0
#endif
#ifndef TRUE
#define TRUE 1
#endif

typedef int BOOL, *PBOOL, *LPBOOL;
typedef uint16_t USHORT, *PUSHORT;
typedef uint32_t UINT32, *PUINT32;
typedef uint64_t UINT64, *PUINT64;
typedef uint32_t ULONG, *PULONG; /* 32 bits, unlike C's unsigned long here */
typedef uint32_t DWORD, *PDWORD, *LPDWORD;
typedef uintptr_t ULONG_PTR, *PULONG_PTR;
typedef void *PVOID, *LPVOID;
typedef void *HANDLE, **PHANDLE, **LPHANDLE;
typedef struct sockaddr SOCKADDR, *PSOCKADDR, *LPSOCKADDR;
typedef struct sockaddr_in SOCKADDR_IN, *PSOCKADDR_IN;
typedef struct sockaddr_in6 SOCKADDR_IN6, *PSOCKADDR_IN6;
typedef sa_family_t ADDRESS_FAMILY;
typedef int SOCKET; /* a file descriptor */

#ifndef INVALID_SOCKET
#define INVALID_SOCKET (-1)
#endif
#ifndef INVALID_HANDLE_VALUE
#define INVALID_HANDLE_VALUE ((HANDLE)(intptr_t)-1)
#endif

/*
 * A call under way. `hEvent` is (HANDLE)(intptr_t)fd of an eventfd(2), or NULL: it is emptied when the call
 * begins, and 1 is added when the call is complete, after everything else has been written. Waiting is poll(),
 * select(), epoll or a read of the eventfd. The library keeps a duplicate meanwhile, so that closing it is safe.
 * `Internal` is STATUS_PENDING, then 0 or the number of the error; `InternalHigh` the bytes in the buffer.
 */
typedef struct _OVERLAPPED {
	ULONG_PTR Internal;
	ULONG_PTR InternalHigh;
	DWORD Offset;
	DWORD OffsetHigh;
	HANDLE hEvent;
} OVERLAPPED, *LPOVERLAPPED;

#ifndef STATUS_PENDING
#define STATUS_PENDING 0x103
#endif
#ifndef HasOverlappedIoCompleted
#define HasOverlappedIoCompleted(lpOverlapped) \
	(__atomic_load_n(&(lpOverlapped)->Internal, __ATOMIC_ACQUIRE) != STATUS_PENDING)
#endif

/*
 * The error of this thread's last failed call. Both are weak: a program that has them already keeps its own, and
 * the library uses those.
 */
DWORD GetLastError(void);
void SetLastError(DWORD dwErrCode);

/*
 * The result of a call that was begun with lpOverlapped. FALSE with ERROR_IO_INCOMPLETE while it is under way,
 * unless bWait; else FALSE with the call's error, or TRUE. The handle is needed for waiting only. Weak.
 */
BOOL GetOverlappedResult(HANDLE hFile, LPOVERLAPPED lpOverlapped, LPDWORD lpNumberOfBytesTransferred, BOOL bWait);

#endif /* QOS2_NO_WIN32_TYPES */

/* ---- Error numbers (winerror.h) -------------------------------------------------------------------------- */

#ifndef ERROR_SUCCESS
#define ERROR_SUCCESS 0
#endif
#ifndef ERROR_ACCESS_DENIED
#define ERROR_ACCESS_DENIED 5
#endif
#ifndef ERROR_INVALID_HANDLE
#define ERROR_INVALID_HANDLE 6
#endif
#ifndef ERROR_NOT_ENOUGH_MEMORY
#define ERROR_NOT_ENOUGH_MEMORY 8
#endif
#ifndef ERROR_GEN_FAILURE
#define ERROR_GEN_FAILURE 31
#endif
#ifndef ERROR_NOT_SUPPORTED
#define ERROR_NOT_SUPPORTED 50
#endif
#ifndef ERROR_NETWORK_BUSY
#define ERROR_NETWORK_BUSY 54
#endif
#ifndef ERROR_ADAP_HDW_ERR
#define ERROR_ADAP_HDW_ERR 57
#endif
#ifndef ERROR_UNEXP_NET_ERR
#define ERROR_UNEXP_NET_ERR 59
#endif
#ifndef ERROR_BAD_NET_NAME
#define ERROR_BAD_NET_NAME 67
#endif
#ifndef ERROR_INVALID_PARAMETER
#define ERROR_INVALID_PARAMETER 87
#endif
#ifndef ERROR_INSUFFICIENT_BUFFER
#define ERROR_INSUFFICIENT_BUFFER 122
#endif
#ifndef ERROR_BUSY
#define ERROR_BUSY 170
#endif
#ifndef ERROR_ALREADY_EXISTS
#define ERROR_ALREADY_EXISTS 183
#endif
#ifndef ERROR_NO_DATA
#define ERROR_NO_DATA 232
#endif
#ifndef ERROR_SYSTEM_POWERSTATE_TRANSITION
#define ERROR_SYSTEM_POWERSTATE_TRANSITION 782
#endif
#ifndef ERROR_SYSTEM_POWERSTATE_COMPLEX_TRANSITION
#define ERROR_SYSTEM_POWERSTATE_COMPLEX_TRANSITION 783
#endif
#ifndef ERROR_OPERATION_ABORTED
#define ERROR_OPERATION_ABORTED 995
#endif
#ifndef ERROR_IO_INCOMPLETE
#define ERROR_IO_INCOMPLETE 996
#endif
#ifndef ERROR_IO_PENDING
#define ERROR_IO_PENDING 997
#endif
#ifndef ERROR_SERVICE_ALREADY_RUNNING
#define ERROR_SERVICE_ALREADY_RUNNING 1056
#endif
#ifndef ERROR_SERVICE_DEPENDENCY_FAIL
#define ERROR_SERVICE_DEPENDENCY_FAIL 1068
#endif
#ifndef ERROR_IO_DEVICE
#define ERROR_IO_DEVICE 1117
#endif
#ifndef ERROR_DEVICE_REINITIALIZATION_NEEDED
#define ERROR_DEVICE_REINITIALIZATION_NEEDED 1164
#endif
#ifndef ERROR_NOT_FOUND
#define ERROR_NOT_FOUND 1168
#endif
#ifndef ERROR_CONNECTION_REFUSED
#define ERROR_CONNECTION_REFUSED 1225
#endif
#ifndef ERROR_HOST_UNREACHABLE
#define ERROR_HOST_UNREACHABLE 1232
#endif
#ifndef ERROR_RETRY
#define ERROR_RETRY 1237
#endif
#ifndef ERROR_ACCESS_DISABLED_BY_POLICY
#define ERROR_ACCESS_DISABLED_BY_POLICY 1260
#endif
#ifndef ERROR_NO_SYSTEM_RESOURCES
#define ERROR_NO_SYSTEM_RESOURCES 1450
#endif
#ifndef ERROR_TIMEOUT
#define ERROR_TIMEOUT 1460
#endif
#ifndef ERROR_RESOURCE_DISABLED
#define ERROR_RESOURCE_DISABLED 4309
#endif

/* ---- Enumerations and constants -------------------------------------------------------------------------- */

typedef enum _QOS_TRAFFIC_TYPE {
	QOSTrafficTypeBestEffort = 0,
	QOSTrafficTypeBackground = 1,
	QOSTrafficTypeExcellentEffort = 2,
	QOSTrafficTypeAudioVideo = 3,
	QOSTrafficTypeVoice = 4,
	QOSTrafficTypeControl = 5
} QOS_TRAFFIC_TYPE, *PQOS_TRAFFIC_TYPE;

typedef enum _QOS_SET_FLOW {
	QOSSetTrafficType = 0,	    /* Buffer: QOS_TRAFFIC_TYPE */
	QOSSetOutgoingRate = 1,	    /* Buffer: QOS_FLOWRATE_OUTGOING */
	QOSSetOutgoingDSCPValue = 2 /* Buffer: DWORD, 0 to 63 */
} QOS_SET_FLOW, *PQOS_SET_FLOW;

typedef enum _QOS_QUERY_FLOW {
	QOSQueryFlowFundamentals = 0, /* Buffer: QOS_FLOW_FUNDAMENTALS */
	QOSQueryPacketPriority = 1,   /* Buffer: QOS_PACKET_PRIORITY */
	QOSQueryOutgoingRate = 2      /* Buffer: UINT64, bits/s at IP level */
} QOS_QUERY_FLOW, *PQOS_QUERY_FLOW;

typedef enum _QOS_NOTIFY_FLOW {
	QOSNotifyCongested = 0,
	QOSNotifyUncongested = 1,
	QOSNotifyAvailable = 2 /* Buffer: UINT64, bits/s at IP level that the flow wants in total */
} QOS_NOTIFY_FLOW, *PQOS_NOTIFY_FLOW;

typedef enum _QOS_SHAPING {
	QOSShapeOnly = 0,
	QOSShapeAndMark = 1,
	QOSUseNonConformantMarkings = 2
} QOS_SHAPING, *PQOS_SHAPING;

typedef enum _QOS_FLOWRATE_REASON {
	QOSFlowRateNotApplicable = 0,
	QOSFlowRateContentChange = 1,
	QOSFlowRateCongestion = 2,
	QOSFlowRateHigherContentEncoding = 3,
	QOSFlowRateUserCaused = 4
} QOS_FLOWRATE_REASON, *PQOS_FLOWRATE_REASON;

#define QOS_QUERYFLOW_FRESH   0x00000001 /* QOSQueryFlow: wait for a new measurement */
#define QOS_NON_ADAPTIVE_FLOW 0x00000002 /* QOSAddSocketToFlow: mark and limit, do not look at the path */

/* As Bandwidth of QOS_FLOWRATE_OUTGOING: a small rate of the system's choice, here 64 kbit/s. */
#define QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH 0xFFFFFFFF

/* ---- Structures ------------------------------------------------------------------------------------------ */

/* The Windows ABI aligns 64-bit members to 8 bytes on every processor; Linux on i386 would take 4. */
#define QOS2_ALIGNED_8 __attribute__((aligned(8)))

typedef struct _QOS_VERSION {
	USHORT MajorVersion; /* 1 */
	USHORT MinorVersion; /* 0 */
} QOS_VERSION, *PQOS_VERSION;

typedef UINT32 QOS_FLOWID, *PQOS_FLOWID;

/* Estimates of the path: bits/s at IP level, microseconds. A value counts where its `...Set` is TRUE. */
typedef struct _QOS_FLOW_FUNDAMENTALS {
	BOOL BottleneckBandwidthSet;
	UINT64 BottleneckBandwidth QOS2_ALIGNED_8;
	BOOL AvailableBandwidthSet;
	UINT64 AvailableBandwidth QOS2_ALIGNED_8;
	BOOL RTTSet;
	UINT32 RTT;
} QOS_FLOW_FUNDAMENTALS, *PQOS_FLOW_FUNDAMENTALS;

/* Bandwidth in bits/s at IP level, headers included; 0 takes contract and marking away. Reason has no effect. */
typedef struct _QOS_FLOWRATE_OUTGOING {
	UINT64 Bandwidth QOS2_ALIGNED_8;
	QOS_SHAPING ShapingBehavior;
	QOS_FLOWRATE_REASON Reason;
} QOS_FLOWRATE_OUTGOING, *PQOS_FLOWRATE_OUTGOING;

/* The markings in force: DSCPs 0 to 63, 802.1p priorities 0 to 7. */
typedef struct _QOS_PACKET_PRIORITY {
	ULONG ConformantDSCPValue;
	ULONG NonConformantDSCPValue;
	ULONG ConformantL2Value;
	ULONG NonConformantL2Value;
} QOS_PACKET_PRIORITY, *PQOS_PACKET_PRIORITY;

#ifdef __cplusplus
#define QOS2_SIZE(type, holds) static_assert(holds, #type ": not its size on Windows")
#else
/* An extension below C11 only. */
#define QOS2_SIZE(type, holds) __extension__ _Static_assert(holds, #type ": not its size on Windows")
#endif
QOS2_SIZE(QOS_VERSION, sizeof(QOS_VERSION) == 4);
QOS2_SIZE(QOS_FLOWID, sizeof(QOS_FLOWID) == 4);
QOS2_SIZE(QOS_TRAFFIC_TYPE, sizeof(QOS_TRAFFIC_TYPE) == 4);
QOS2_SIZE(QOS_FLOW_FUNDAMENTALS, sizeof(QOS_FLOW_FUNDAMENTALS) == 40);
QOS2_SIZE(QOS_FLOWRATE_OUTGOING, sizeof(QOS_FLOWRATE_OUTGOING) == 16);
QOS2_SIZE(QOS_PACKET_PRIORITY, sizeof(QOS_PACKET_PRIORITY) == 16);
QOS2_SIZE(BOOL, sizeof(BOOL) == 4);
QOS2_SIZE(DWORD, sizeof(DWORD) == 4);
QOS2_SIZE(HANDLE, sizeof(HANDLE) == sizeof(void *));
QOS2_SIZE(OVERLAPPED, sizeof(OVERLAPPED) == 3 * sizeof(void *) + 8);
/* As wide as a pointer on Windows; either is passed in the same way. */
QOS2_SIZE(SOCKET, sizeof(SOCKET) == sizeof(int) || sizeof(SOCKET) == sizeof(void *));
#undef QOS2_SIZE

/* ---- The calls ------------------------------------------------------------------------------------------- */

BOOL QOSCreateHandle(PQOS_VERSION Version, PHANDLE QOSHandle);

BOOL QOSCloseHandle(HANDLE QOSHandle);

BOOL QOSStartTrackingClient(HANDLE QOSHandle, PSOCKADDR DestAddr, DWORD Flags);

BOOL QOSStopTrackingClient(HANDLE QOSHandle, PSOCKADDR DestAddr, DWORD Flags);

BOOL QOSEnumerateFlows(HANDLE QOSHandle, PULONG Size, PVOID Buffer);

BOOL QOSAddSocketToFlow(HANDLE QOSHandle, SOCKET Socket, PSOCKADDR DestAddr, QOS_TRAFFIC_TYPE TrafficType, DWORD Flags,
			PQOS_FLOWID FlowId);

/* Socket 0: the whole flow, so that descriptor 0 cannot be taken out by itself. */
BOOL QOSRemoveSocketFromFlow(HANDLE QOSHandle, SOCKET Socket, QOS_FLOWID FlowId, DWORD Flags);

BOOL QOSSetFlow(HANDLE QOSHandle, QOS_FLOWID FlowId, QOS_SET_FLOW Operation, ULONG Size, PVOID Buffer, DWORD Flags,
		LPOVERLAPPED Overlapped);

BOOL QOSQueryFlow(HANDLE QOSHandle, QOS_FLOWID FlowId, QOS_QUERY_FLOW Operation, PULONG Size, PVOID Buffer, DWORD Flags,
		  LPOVERLAPPED Overlapped);

BOOL QOSNotifyFlow(HANDLE QOSHandle, QOS_FLOWID FlowId, QOS_NOTIFY_FLOW Operation, PULONG Size, PVOID Buffer,
		   DWORD Flags, LPOVERLAPPED Overlapped);

BOOL QOSCancel(HANDLE QOSHandle, LPOVERLAPPED Overlapped);

/*
 * An extension: what is wrong and what to do, in words, for the number that GetLastError() tells now; "" for 0.
 * UTF-8, valid in this thread until its next call of this library.
 */
const char *qos2_last_error_message(void);

/* ---- Between the rate of payload and the rate at IP level ------------------------------------------------ */

/* Bytes of headers in a packet. What is not AF_INET is IPv6, what is not TCP is UDP. */
static inline ULONG QOS_HEADER_OVERHEAD(int addressFamily, int protocol)
{
	return (addressFamily == AF_INET ? 20u : 40u) + (protocol == IPPROTO_TCP ? 20u : 8u);
}

/* `dataRate` times `overhead` / `bytes`, rounded down; `most` where it would be more, or is infinite. */
static inline UINT64 qos2_overhead_rate(ULONG overhead, UINT64 bytes, UINT64 dataRate, UINT64 most)
{
	/* Volatile, so that each step is rounded to double, as on Windows, by the x87 unit too. */
	volatile double share, extra;

	if (bytes == 0)
		return most;
	share = (double)overhead / (double)bytes;
	extra = share * (double)dataRate;
	return extra < (double)most ? (UINT64)extra : most;
}

/*
 * The rate at IP level, in bits/s, of `dataRate` bits/s of payload in packets with `targetDataPacketSize` bytes of
 * it. Packets without payload have no such rate: then it is the largest number, which QOSSetFlow refuses.
 */
static inline UINT64 QOS_ADD_OVERHEAD(int addressFamily, int protocol, UINT32 targetDataPacketSize, UINT64 dataRate)
{
	ULONG overhead = QOS_HEADER_OVERHEAD(addressFamily, protocol);

	return dataRate + qos2_overhead_rate(overhead, targetDataPacketSize, dataRate, UINT64_MAX - dataRate);
}

/* The rate of payload, in bits/s, in `dataRate` bits/s at IP level. */
static inline UINT64 QOS_SUBTRACT_OVERHEAD(int addressFamily, int protocol, UINT32 targetDataPacketSize,
					   UINT64 dataRate)
{
	ULONG overhead = QOS_HEADER_OVERHEAD(addressFamily, protocol);
	UINT64 bytes = (UINT64)targetDataPacketSize + overhead;

	return dataRate - qos2_overhead_rate(overhead, bytes, dataRate, dataRate);
}

#ifdef __cplusplus
}
#endif

#endif /* QOS2_H */
